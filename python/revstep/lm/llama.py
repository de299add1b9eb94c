"""The Llama-style model: RMSNorm, rotary positions, grouped-query attention, SwiGLU; no biases.

Source: Touvron et al., LLaMA, arXiv 2302.13971 (2023); its parts are named where they stand. Channels of a head are paired as in
transformers (channel i with i + D/2), not as in Meta's files (2i with 2i + 1): a fixed permutation of the rows of q and k apart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .language_model import LanguageModel
from .shapes import LlamaConfig
from .trunk import PreNormBlock


class Rotary(nn.Module):
    """Tables of rotary positions: at position t, channel pair i of a head of D channels turns by ``t theta^(-2i/D)``.

    ``rotary(T, device) -> cos, sin``, each (T, D) float32, the second half of the channels a copy of the first. There are no
    parameters and no buffers: tables made once a forward pass stay float32 in a bfloat16 model, and go through the trunk as block
    arguments, so that a block that is evaluated again reads the very same ones.

    Source: Su et al., RoFormer, arXiv 2104.09864 (2021), eq. 34.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.theta, self.channels = config.rope_theta, config.head_width

    def forward(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.channels, 2, dtype=torch.float32, device=device) / self.channels
        angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * (1.0 / self.theta**exponents)  # (T, D / 2)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``(a, b) -> (a cos - b sin, b cos + a sin)`` for the halves a, b of x (..., T, D); computed in float32, returned in x's dtype."""
    a, b = x.chunk(2, dim=-1)
    # A float32 table beside a bfloat16 x: torch computes in the wider of the two, and does so under autocast too.
    return (x * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """``Attn(RMSNorm x)``: causal self-attention in which ``heads / groups`` heads of queries share a head of keys and values; no skip.

    (B, T, C), cos and sin (T, D) -> (B, T, C). The rows of ``qkv`` are the heads of q, then those of k, then those of v.

    Sources: Ainslie et al., GQA, arXiv 2305.13245 (2023); Zhang and Sennrich, Root Mean Square Layer Normalization,
    arXiv 1910.07467 (2019): ``RMSNorm(x) = g x / sqrt(mean(x^2) + eps)``.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.heads, self.groups, self.channels, self.dropout = config.heads, config.groups, config.head_width, config.dropout
        self.ln = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.groups) * self.channels, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(self.ln(x)).view(B, T, -1, self.channels).transpose(1, 2)  # (B, heads + 2 groups, T, D)
        q, k, v = qkv.split((self.heads, self.groups, self.groups), dim=1)
        y = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True,
            dropout_p=self.dropout if self.training else 0.0, enable_gqa=self.groups != self.heads,
        )  # fmt: skip
        y = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class SwiGLU(nn.Module):
    """``W2 (silu(W x') * V x')`` with x' = RMSNorm x, without the skip. (B, T, C) -> (B, T, C).

    W is ``gate``, V ``up``, W2 ``proj``. Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202 (2020), eq. 6.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.dropout = config.dropout
        self.ln = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.gate = nn.Linear(config.width, config.mlp_width, bias=False)
        self.up = nn.Linear(config.width, config.mlp_width, bias=False)
        self.proj = nn.Linear(config.mlp_width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
        """The tables are for the attention; a stack of two streams hands them to both halves."""
        x = self.ln(x)
        return F.dropout(self.proj(F.silu(self.gate(x)) * self.up(x)), self.dropout, self.training)


class LlamaBlock(PreNormBlock):
    """The Llama's block; called with the rotary tables: ``block(p, cos, sin)``."""

    def __init__(self, config: LlamaConfig):
        super().__init__(Attention(config), SwiGLU(config))


class Llama(LanguageModel):
    """The Llama-style model; arguments as ``LanguageModel``, with a ``LlamaConfig``. Its trunk is called ``trunk(x, cos, sin)``."""

    config: LlamaConfig

    def _positions(self) -> nn.Module:
        return Rotary(self.config)

    def _block(self) -> nn.Module:
        return LlamaBlock(self.config)

    def _norm(self) -> nn.Module:
        return nn.RMSNorm(self.config.width, eps=self.config.norm_eps)

    def _enter(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return self.tokens(tokens), *self.positions(tokens.shape[1], tokens.device)
