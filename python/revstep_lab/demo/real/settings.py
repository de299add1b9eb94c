"""What a run of the demo on real weights is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from revstep.errors import ConfigError
from revstep.specs import parse_scheme


@dataclass(frozen=True)
class Settings:
    """A run; the defaults fine-tune for about three minutes on two CPU cores.

    Attributes:
        minutes: about how long the training takes; the number of steps follows from a timed step.
        steps: optimiser steps; 0: from ``minutes``. Given, the losses can be repeated.
        seed: of the adapters and of the order of the rows.
        out: folder of the numbers, the picture and the model.
        scheme: how the model runs while it is trained; "auto" measures its layers first, about two minutes.
        batch, context: rows of a step, and tokens of a row.
        rank, lr: of the LoRA adapters, on all linear layers.
        held_out: rows that the four losses are taken on.
        tokens: of a sample.
        progress: bars on stderr, on a terminal.

    Raises:
        ConfigError: a value that cannot be used.
    """

    minutes: float = 3.0
    steps: int = 0
    seed: int = 0
    out: str = "revstep-demo"
    scheme: str = "auto"
    batch: int = 2
    context: int = 512
    rank: int = 8
    lr: float = 3e-4
    held_out: int = 8
    tokens: int = 48
    progress: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.minutes) or self.minutes <= 0:
            raise ConfigError(f"minutes is {self.minutes!r}; expected a number above 0, e.g. 3")
        for name in ("steps", "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected a whole number of at least 0")
        for name in ("batch", "rank", "held_out", "tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected a whole number of at least 1")
        if not self.out:
            raise ConfigError("out is empty; name a folder for the numbers, the picture and the model")
        if self.scheme != "auto":
            parse_scheme(self.scheme).make()

    def command(self, steps: int) -> str:
        """The command line that repeats a run of this many steps."""
        return f"revstep demo --steps {steps} --seed {self.seed}"
