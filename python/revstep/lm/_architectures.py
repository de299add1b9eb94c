"""The language models of :mod:`revstep.lm`: the GPT, the Llama-style model, and ``make_model``, which builds
the one whose shape a config is.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ._config import GPTConfig, LlamaConfig, ModelConfig
from ._language_model import LanguageModel, PreNormBlock, ResidualStack, make_trunk

__all__ = [
    "GPT", "MLP", "Attention", "Block", "GPTConfig", "GroupedAttention", "LanguageModel", "Llama",
    "LlamaBlock", "LlamaConfig", "ResidualStack", "Rotary", "SwiGLU", "make_model", "make_trunk", "rotate",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# The GPT: pre-LayerNorm, learned positions, causal SDPA, GELU MLP of four times the width, biases everywhere.
#
# Source: Radford et al., Language Models are Unsupervised Multitask Learners (GPT-2, 2019).


class Attention(nn.Module):
    """``Attn(LN x)``: causal self-attention with its LayerNorm, without the skip. (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.heads = config.heads
        self.dropout = config.dropout
        self.ln = nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        qkv = self.qkv(self.ln(x)).view(B, T, 3, self.heads, C // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, heads, T, C / heads)
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        y = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class MLP(nn.Module):
    """``MLP(LN x)``: width -> 4 width -> width with its LayerNorm, without the skip. (B, T, C) ->
    (B, T, C).
    """

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


# ---- The Llama-style model: RMSNorm, rotary positions, grouped-query attention, SwiGLU; no biases ----
#
# Source: Touvron et al., LLaMA, arXiv 2302.13971 (2023); its parts are named where they stand. Channels of a
# head are paired as in transformers (channel i with i + D/2), not as in Meta's files (2i with 2i + 1): a
# fixed permutation of the rows of q and k apart.


class Rotary(nn.Module):
    """Tables of rotary positions: at position t, channel pair i of a head of D channels turns by ``t
    theta^(-2i/D)``.

    ``rotary(T, device) -> cos, sin``, each (T, D) float32, the second half of the channels a copy of the
    first. There are no parameters and no buffers: tables made once a forward pass stay float32 in a bfloat16
    model, and go through the trunk as block arguments, so that a block that is evaluated again reads the very
    same ones.

    Source: Su et al., RoFormer, arXiv 2104.09864 (2021), eq. 34.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.theta = config.rope_theta
        self.channels = config.head_width

    def forward(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        exponents = torch.arange(0, self.channels, 2, dtype=torch.float32, device=device) / self.channels
        # (T, D / 2)
        angles = torch.arange(length, dtype=torch.float32, device=device)[:, None] * (
            1.0 / self.theta**exponents
        )
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """``(a, b) -> (a cos - b sin, b cos + a sin)`` for the halves a, b of x (..., T, D); computed in float32,
    returned in x's dtype.
    """
    a, b = x.chunk(2, dim=-1)
    # A float32 table beside a bfloat16 x: torch computes in the wider of the two, and does so under autocast
    # too.
    return (x * cos + torch.cat((-b, a), dim=-1) * sin).to(x.dtype)


class GroupedAttention(nn.Module):
    """``Attn(RMSNorm x)``: causal self-attention in which ``heads / groups`` heads of queries share a head of
    keys and values; no skip.

    (B, T, C), cos and sin (T, D) -> (B, T, C). The rows of ``qkv`` are the heads of q, then those of k, then
    those of v.

    Sources: Ainslie et al., GQA, arXiv 2305.13245 (2023); Zhang and Sennrich, Root Mean Square Layer
    Normalization, arXiv 1910.07467 (2019): ``RMSNorm(x) = g x / sqrt(mean(x^2) + eps)``.
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.heads = config.heads
        self.groups = config.groups
        self.channels = config.head_width
        self.dropout = config.dropout
        self.ln = nn.RMSNorm(config.width, eps=config.norm_eps)
        self.qkv = nn.Linear(config.width, (self.heads + 2 * self.groups) * self.channels, bias=False)
        self.proj = nn.Linear(config.width, config.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x.shape
        # (B, heads + 2 groups, T, D)
        qkv = self.qkv(self.ln(x)).view(B, T, -1, self.channels).transpose(1, 2)
        q, k, v = qkv.split((self.heads, self.groups, self.groups), dim=1)
        y = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True,
            dropout_p=self.dropout if self.training else 0.0, enable_gqa=self.groups != self.heads,
        )  # fmt: skip
        y = self.proj(y.transpose(1, 2).reshape(B, T, C))
        return F.dropout(y, self.dropout, self.training)


class SwiGLU(nn.Module):
    """``W2 (silu(W x') * V x')`` with x' = RMSNorm x, without the skip. (B, T, C) -> (B, T, C).

    W is ``gate``, V ``up``, W2 ``proj``. Source: Shazeer, GLU Variants Improve Transformer, arXiv 2002.05202
    (2020), eq. 6.
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
        super().__init__(GroupedAttention(config), SwiGLU(config))


class Llama(LanguageModel):
    """The Llama-style model; arguments as ``LanguageModel``, with a ``LlamaConfig``. Its trunk is called
    ``trunk(x, cos, sin)``.
    """

    config: LlamaConfig

    def _positions(self) -> nn.Module:
        return Rotary(self.config)

    def _block(self) -> nn.Module:
        return LlamaBlock(self.config)

    def _norm(self) -> nn.Module:
        return nn.RMSNorm(self.config.width, eps=self.config.norm_eps)

    def _enter(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return self.tokens(tokens), *self.positions(tokens.shape[1], tokens.device)


# ------------------------------------------------------------------------------------------------------------
# The models by their shapes: ``make_model(config, scheme)``. What they are made of is importable from here
# too.

_MODELS: dict[type[ModelConfig], type[LanguageModel]] = {GPTConfig: GPT, LlamaConfig: Llama}


def make_model(config: ModelConfig, scheme: Any = "plain", **options: Any) -> LanguageModel:
    """The model whose shape ``config`` is; ``scheme`` and ``options`` as in ``LanguageModel``.

    Raises:
        ConfigError: ``config`` is not the shape of a model; as ``LanguageModel``.
    """
    if type(config) not in _MODELS:
        raise ConfigError(
            f"config is {type(config).__name__}; expected one of"
            f" {', '.join(kind.__name__ for kind in _MODELS)}"
        )
    return _MODELS[type(config)](config, scheme, **options)
