"""What a training run returns, or raises where its loss is no longer a number."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import RevstepError
from .config import TrainConfig


class DivergedError(RevstepError, ArithmeticError):
    """The loss or its gradient is NaN or infinite: going on would only spoil the weights. They are as they were before that step."""


@dataclass
class Result:
    """What ``train`` returns.

    Attributes:
        config: the run.
        step: optimiser steps done in all.
        signal: that which stopped the run (SIGINT, SIGTERM; a checkpoint was written), 0 for none.
        losses: training loss of each step of this call.
        first_step: the step before the first of them.
        skipped: how many of them were not used.
        val_losses: (steps done, validation loss) of this call.
        tokens_per_second: training tokens over training time of this call, the first step left out (it warms up).
        peak_memory: bytes, see ``session.peak_memory``.
        exact: every backward of this call rebuilt its states bit for bit; None for a trunk that rebuilds nothing.
        max_error: largest reconstruction error reported (0.0 when exact, None when a trunk did not measure it).
        reconstruction: the last report as text ("exact (12 layers)", "stored", "recomputed").
        model: as trained, on the run's device.
        tokenizer: of the run.
        rank: of this process among those of the run; all get the same but for the model, of which each has its part where it is sharded.
        checkpoint: folder of the last checkpoint, or None without ``out``.
    """

    config: TrainConfig
    step: int
    first_step: int
    signal: int = 0
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens_per_second: float = 0.0
    peak_memory: int = 0
    exact: bool | None = None
    max_error: float | None = 0.0
    reconstruction: str = ""
    model: nn.Module | None = None
    tokenizer: Any = None
    rank: int = 0
    checkpoint: Path | None = None

    @property
    def interrupted(self) -> bool:
        """A signal stopped the run before its last step."""
        return self.signal != 0
