"""The GPT: pre-LayerNorm, learned positions, causal SDPA, GELU MLP of four times the width, biases everywhere.

Source: Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2, 2019).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .language_model import LanguageModel
from .shapes import GPTConfig
from .trunk import PreNormBlock


class Attention(nn.Module):
    """``Attn(LN x)``: causal self-attention with its LayerNorm, without the skip. (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.ln = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(self.ln(x)).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, C / heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0)
        y = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """``MLP(LN x)``: width -> 4 width -> width with its LayerNorm, without the skip. (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.dropout = config.dropout
        self.ln = nn.LayerNorm(config.width)
        self.up = nn.Linear(config.width, 4 * config.width)
        self.proj = nn.Linear(4 * config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.proj(F.gelu(self.up(self.ln(x)))), self.dropout, self.training)


class Block(PreNormBlock):
    """The GPT's block."""

    def __init__(self, config: GPTConfig):
        super().__init__(Attention(config), MLP(config))


class GPT(LanguageModel):
    """The GPT; arguments as ``LanguageModel``, with a ``GPTConfig``."""

    config: GPTConfig

    def _positions(self) -> nn.Module:
        return nn.Embedding(self.config.context, self.config.width)

    def _block(self) -> nn.Module:
        return Block(self.config)

    def _norm(self) -> nn.Module:
        return nn.LayerNorm(self.config.width)

    def _enter(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return (self.tokens(tokens) + self.positions.weight[: tokens.shape[1]],)
