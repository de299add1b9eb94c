"""What every language model of :mod:`revstep.lm` shares: its trunk of pre-norm blocks, plain or reversible,
and around it the token embedding, the last norm, the head, the loss and the initial weights.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._models.training import chunked_cross_entropy
from .._options import ModelKeywords, StackOptions, takes_options
from .._specs import parse_scheme, parse_state
from ..errors import ConfigError
from ..stack import tokenwise
from ._config import ModelConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

# ------------------------------------------------------------------------------------------------------------
# The trunk of a model: its blocks, run as the plain residual stack or as a ReversibleStack, with the same
# parameters under the same names.


class PreNormBlock(nn.Module):
    """One transformer block as an increment: ``block(p) = a + MLP(p + a)``, ``a = Attn(p)`` (eq. 2.5 of arXiv
    2512.02056).

    Both halves normalise their own input and leave out the skip. (B, T, C) -> (B, T, C). Further arguments
    (tables of positions) go to the attention; a stack of two streams gives its arguments to both halves, so
    an MLP takes them too where there are any.
    """

    def __init__(self, attn: nn.Module, mlp: nn.Module):
        super().__init__()
        self.attn, self.mlp = attn, tokenwise(mlp)

    def forward(self, p: Tensor, *args: Tensor) -> Tensor:
        a = self.attn(p, *args)
        return a + self.mlp(p + a)

    def halves(self) -> tuple[nn.Module, nn.Module]:
        """``(F, G)`` for schemes with two streams: the attention half and the MLP half."""
        return self.attn, self.mlp


class ResidualStack(nn.Module):
    """The reference trunk ``p + f(p)`` (eq. 2.2): every activation stored, or each block recomputed in
    backward.

    ``stack(p, *args)``: further arguments go to every block, as in ``ReversibleStack``.
    """

    report = (
        None  # nothing is reconstructed; the attribute is here so that a trunk need not be asked what it is
    )

    def __init__(self, blocks: Sequence[nn.Module], *, recompute: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.recompute = recompute

    def forward(self, p: Tensor, *args: Tensor) -> Tensor:
        for block in self.blocks:
            recompute = self.recompute and torch.is_grad_enabled()
            p = p + (checkpoint(block, p, *args, use_reentrant=False) if recompute else block(p, *args))
        return p


def make_trunk(blocks: Sequence[nn.Module], scheme: Any = "plain", **options: Any) -> nn.Module:
    """The trunk for ``scheme``: "plain", "checkpoint", a string such as "blend:c=0.25", a scheme object, or a
    ``StackOptions`` with one of these.

    ``options`` are those of ``StackOptions``; ``state`` may be a string. The stored trunks have none of them
    and ignore them, so that one configuration can be run with every trunk.

    Raises:
        ConfigError: unknown scheme, option or state; options that the stack refuses.
    """
    from ..stack import ReversibleStack

    if unknown := sorted(options.keys() - StackOptions.names()):
        raise ConfigError(
            f"unknown option {unknown[0]!r} of a trunk, expected some of"
            f" {', '.join(sorted(StackOptions.names()))}"
        )
    how = StackOptions.of(scheme, **options)
    if isinstance(how.scheme, str):
        spec = parse_scheme(how.scheme)
        if not spec.reversible:
            return ResidualStack(blocks, recompute=spec.name == "checkpoint")
        how = dataclasses.replace(how, scheme=spec.make())
    if isinstance(how.state, str):
        how = dataclasses.replace(how, state=parse_state(how.state).make())
    return ReversibleStack(blocks, how)


def evaluated(trunk: nn.Module) -> list[nn.Module]:
    """The modules a trunk calls: its blocks, or the two halves of each for schemes with two streams (which
    never call the block itself).
    """
    halved = getattr(getattr(trunk, "scheme", None), "halves", 1) == 2
    return [part for block in trunk.blocks for part in (block.halves() if halved else (block,))]


# ------------------------------------------------------------------------------------------------------------
# What every model here shares: token embedding, trunk, last norm, head, loss and initial weights. A model
# adds its block and its positions.
#
# Initialised as GPT-2 (Radford et al. 2019): weights N(0, 0.02), the two projections of a block that write
# into the stream divided by sqrt(2 layers), biases 0, norms 1.


class LanguageModel(nn.Module, ABC):
    """A decoder over tokens whose trunk is the plain residual stack or a ReversibleStack.

    Args:
        config: shape of the model.
        scheme: the trunk: "plain", "checkpoint", a scheme string or a scheme object.
        seed: of the initial weights, drawn by a generator of their own on the CPU: they depend on ``config``
            and ``seed`` only, not on the trunk, the device or the global random state.
        options: of ``StackOptions`` (state, start, readout, keep, ...); no meaning for the stored trunks.

    Parameter names: ``tokens``, ``positions`` (where learned), ``trunk.blocks.N``, ``ln``, ``head`` (where
    not tied). In a block, norms are named ``ln`` and projections back into the stream ``proj``: the initial
    weights go by these names.

    Raises:
        ConfigError: unknown scheme or state, options the stack refuses.
    """

    @takes_options
    def __init__(
        self, config: ModelConfig, scheme: Any = "plain", *, seed: int = 0, **options: Unpack[ModelKeywords]
    ):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab, config.width)
        self.positions = self._positions()
        blocks = [self._block() for _ in range(config.layers)]
        self.trunk = make_trunk(blocks, scheme, **options)
        self.ln = self._norm()
        self.head = None if config.tied else nn.Linear(config.width, config.vocab, bias=False)
        self._initialise(torch.Generator().manual_seed(seed))

    @abstractmethod
    def _positions(self) -> nn.Module:
        """What knows about positions."""

    @abstractmethod
    def _block(self) -> nn.Module:
        """One block, as an increment."""

    @abstractmethod
    def _norm(self) -> nn.Module:
        """The norm before the head."""

    @abstractmethod
    def _enter(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """``tokens`` (B, T) -> what the trunk is called with: x (B, T, C), then what every block gets."""

    @torch.no_grad()
    def _initialise(self, generator: torch.Generator) -> None:
        # By name: the draw must not hang on registration order.
        for name, parameter in sorted(self.named_parameters()):
            if ".ln." in f".{name}":
                continue  # norms start as ones (and zeros)
            if name.endswith("bias"):
                parameter.zero_()
            else:
                std = 0.02 / math.sqrt(2 * self.config.layers) if name.endswith("proj.weight") else 0.02
                parameter.copy_(
                    torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
                )

    @property
    def head_weight(self) -> Tensor:
        """(V, C): the token embedding where tied."""
        return self.tokens.weight if self.head is None else self.head.weight

    def hidden(self, tokens: Tensor) -> Tensor:
        """``tokens`` (B, T) int64 -> what the head reads, (B, T, C).

        Raises:
            ConfigError: ``tokens`` has another shape or is longer than the context.
        """
        if tokens.ndim != 2 or tokens.shape[1] > self.config.context:
            raise ConfigError(
                f"tokens have shape {tuple(tokens.shape)}; expected (batch, time) with time at most"
                f" {self.config.context}: crop them"
            )
        x, *args = self._enter(tokens)  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        return self.ln(self.trunk(x, *args))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """``tokens`` (B, T) int64 -> logits (B, T, V), or with ``targets`` (B, T) int64 -> the mean cross
        entropy, a scalar.
        """
        x, weight = self.hidden(tokens), self.head_weight
        if targets is None:
            return F.linear(x, weight)
        x, targets = x.flatten(0, 1), targets.flatten()  # (B * T, C), (B * T,)
        if self.config.loss_chunk == 0:
            logits = F.linear(x, weight)  # (B * T, V), narrow under autocast
            return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets)
        return chunked_cross_entropy(x, weight, None, targets, self.config.loss_chunk)
