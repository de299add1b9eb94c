"""A GPT whose trunk is the plain residual stack or a ReversibleStack: the same parameters, under the same names.

Pre-LayerNorm, learned positions, causal SDPA, GELU MLP of four times the width, embeddings tied to the head. Initialised as
GPT-2: weights N(0, 0.02), the two projections that write into the stream divided by sqrt(2 layers), biases 0.
Sources: Radford et al., GPT-2 (2019); the increment of a block is eq. 2.5 of arXiv 2512.02056.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from ..specs import SchemeSpec, parse_scheme, parse_state
from .config import GPTConfig

__all__ = ["GPT", "MLP", "Attention", "Block", "GPTConfig", "ResidualStack", "chunked_loss", "make_trunk"]

#: Rows of a chunk of the loss on CPU. torch 2.13's own choice there is too small when the vocabulary is large: 2048 rows, width
#: 256, 32,768 ids, one x86 core, float32, loss and gradients: all logits 1.9 s and 783 MB, torch's choice 4.4 s and 181 MB,
#: 256 rows 1.0 s and 182 MB.
CPU_CHUNK = 256


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


class Block(nn.Module):
    """One transformer block as an increment: ``block(p) = a + MLP(p + a)``, ``a = Attn(p)`` (eq. 2.5). (B, T, C) -> (B, T, C)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)

    def forward(self, p: Tensor) -> Tensor:
        a = self.attn(p)
        return a + self.mlp(p + a)

    def halves(self) -> tuple[nn.Module, nn.Module]:
        """``(F, G)`` for schemes with two streams: the attention half and the MLP half."""
        return self.attn, self.mlp


class ResidualStack(nn.Module):
    """The reference trunk ``p + f(p)`` (eq. 2.2): every activation stored, or each block recomputed in backward."""

    report = None  # nothing is reconstructed; the attribute is here so that a trunk need not be asked what it is

    def __init__(self, blocks: Sequence[nn.Module], *, recompute: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.recompute = recompute

    def forward(self, p: Tensor) -> Tensor:
        for block in self.blocks:
            recompute = self.recompute and torch.is_grad_enabled()
            p = p + (checkpoint(block, p, use_reentrant=False) if recompute else block(p))
        return p


def make_trunk(blocks: Sequence[nn.Module], scheme: Any = "plain", **options: Any) -> nn.Module:
    """The trunk for ``scheme``: "plain", "checkpoint", a string such as "blend:c=0.25", or a scheme object.

    ``options`` are those of ``ReversibleStack`` (state, start, readout, keep, checks); ``state`` may be a string. The stored
    trunks have none of them and ignore them, so that one configuration can be run with every trunk.

    Raises:
        ConfigError: unknown scheme, option or state; options that the stack refuses.
    """
    spec = scheme if isinstance(scheme, SchemeSpec) else parse_scheme(scheme) if isinstance(scheme, str) else None
    if spec is not None and not spec.reversible:
        return ResidualStack(blocks, recompute=spec.name == "checkpoint")
    from ..stack import ReversibleStack

    if isinstance(options.get("state"), str):
        options["state"] = parse_state(options["state"]).make()
    return ReversibleStack(blocks, spec.make() if spec is not None else scheme, **options)


def chunked_loss(hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | str) -> Tensor:
    """Mean cross entropy of ``hidden @ weight.T`` against ``targets`` without ever holding all logits.

    ``hidden`` (N, C), ``weight`` (V, C), ``targets`` (N,) int64 -> scalar float32 (float64 for float64 models). Negative targets
    of -100 are ignored, as in ``cross_entropy``.

    torch 2.13's chunked op computes the gradients in the forward pass, so a second derivative (create_graph=True) and
    torch.func are not available: set loss_chunk=0 for those. It also returns the loss in its inputs' dtype and rounds the
    gradients there before a GradScaler has scaled them, so we leave autocast and run the head in the weights' own dtype.
    """
    if chunk == "auto" and hidden.device.type == "cpu":
        chunk = CPU_CHUNK
    try:
        from torch.nn import LinearCrossEntropyOptions
    except ImportError:
        raise ConfigError(f"the chunked loss needs torch 2.13 or newer, this is {torch.__version__}: upgrade, or set loss_chunk=0 to hold all logits") from None
    options = LinearCrossEntropyOptions() if chunk == "auto" else LinearCrossEntropyOptions(batch_chunk_size=int(chunk), chunking_method=None)
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear_cross_entropy(hidden.to(weight.dtype), weight, targets, options=options)


class GPT(nn.Module):
    """The language model.

    Args:
        config: shape of the model.
        scheme: the trunk: "plain", "checkpoint", a scheme string or a scheme object.
        seed: of the initial weights, drawn by a generator of their own on the CPU: they depend on ``config`` and ``seed`` only,
            not on the trunk, the device or the global random state.
        state, start, readout, keep, checks: as in ``ReversibleStack``; no meaning for the stored trunks.

    Raises:
        ConfigError: unknown scheme or state, options the stack refuses.
    """

    def __init__(
        self, config: GPTConfig, scheme: Any = "plain", *, seed: int = 0,
        state: Any = "fixed32", start: str = "repeat", readout: str = "last", keep: int = 0, checks: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.width)  # also the head
        self.positions = nn.Embedding(config.context, config.width)
        blocks = [Block(config) for _ in range(config.layers)]
        self.trunk = make_trunk(blocks, scheme, state=state, start=start, readout=readout, keep=keep, checks=checks)
        self.ln = nn.LayerNorm(config.width)
        self._initialise(torch.Generator().manual_seed(seed))

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        for name, parameter in sorted(self.named_parameters()):  # by name: the draw must not hang on registration order
            if ".ln." in f".{name}":
                continue  # LayerNorm starts as ones and zeros
            if name.endswith("bias"):
                parameter.zero_()
            else:
                std = 0.02 / math.sqrt(2 * self.config.layers) if name.endswith("proj.weight") else 0.02
                parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))

    def hidden(self, tokens: Tensor) -> Tensor:
        """``tokens`` (B, T) int64 -> what the head reads, (B, T, C).

        Raises:
            ConfigError: ``tokens`` has another shape or is longer than the context.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context:
            raise ConfigError(f"tokens have shape {tuple(tokens.shape)}; expected (batch, time) with time at most {self.config.context}: crop them")
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        return self.ln(self.trunk(x))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """``tokens`` (B, T) int64 -> logits (B, T, V), or with ``targets`` (B, T) int64 -> the mean cross entropy, a scalar."""
        x = self.hidden(tokens)
        if targets is None:
            return F.linear(x, self.tokens.weight)
        x, targets = x.flatten(0, 1), targets.flatten()  # (B * T, C), (B * T,)
        if self.config.loss_chunk == 0:
            logits = F.linear(x, self.tokens.weight)  # (B * T, V), narrow under autocast
            return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets)
        return chunked_loss(x, self.tokens.weight, targets, self.config.loss_chunk)
