"""What every model here shares: token embedding, trunk, last norm, head, loss and initial weights. A model adds its block and its positions.

Initialised as GPT-2 (Radford et al. 2019): weights N(0, 0.02), the two projections of a block that write into the stream divided
by sqrt(2 layers), biases 0, norms 1.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..models.loss import chunked_cross_entropy, too_old
from ..options import takes_options
from .shapes import ModelConfig
from .trunk import make_trunk


class LanguageModel(nn.Module, ABC):
    """A decoder over tokens whose trunk is the plain residual stack or a ReversibleStack.

    Args:
        config: shape of the model.
        scheme: the trunk: "plain", "checkpoint", a scheme string or a scheme object.
        seed: of the initial weights, drawn by a generator of their own on the CPU: they depend on ``config`` and ``seed`` only,
            not on the trunk, the device or the global random state.
        options: of ``StackOptions`` (state, start, readout, keep, ...); no meaning for the stored trunks.

    Parameter names: ``tokens``, ``positions`` (where learned), ``trunk.blocks.N``, ``ln``, ``head`` (where not tied). In a block,
    norms are named ``ln`` and projections back into the stream ``proj``: the initial weights go by these names.

    Raises:
        ConfigError: unknown scheme or state, options the stack refuses.
    """

    @takes_options
    def __init__(self, config: ModelConfig, scheme: Any = "plain", *, seed: int = 0, **options: Any):
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
        for name, parameter in sorted(self.named_parameters()):  # by name: the draw must not hang on registration order
            if ".ln." in f".{name}":
                continue  # norms start as ones (and zeros)
            if name.endswith("bias"):
                parameter.zero_()
            else:
                std = 0.02 / math.sqrt(2 * self.config.layers) if name.endswith("proj.weight") else 0.02
                parameter.copy_(torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator))

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
            raise ConfigError(f"tokens have shape {tuple(tokens.shape)}; expected (batch, time) with time at most {self.config.context}: crop them")
        x, *args = self._enter(tokens)  # (B, T, C)
        x = F.dropout(x, self.config.dropout, self.training)
        return self.ln(self.trunk(x, *args))

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """``tokens`` (B, T) int64 -> logits (B, T, V), or with ``targets`` (B, T) int64 -> the mean cross entropy, a scalar."""
        x, weight = self.hidden(tokens), self.head_weight
        if targets is None:
            return F.linear(x, weight)
        x, targets = x.flatten(0, 1), targets.flatten()  # (B * T, C), (B * T,)
        if self.config.loss_chunk == 0:
            logits = F.linear(x, weight)  # (B * T, V), narrow under autocast
            return F.cross_entropy(logits if logits.dtype == torch.float64 else logits.float(), targets)
        if too_old():
            raise ConfigError(f"the loss in chunks needs {too_old()}: upgrade torch, or set loss_chunk=0 to hold all logits")
        return chunked_cross_entropy(x, weight, None, targets, self.config.loss_chunk)
