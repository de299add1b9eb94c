"""What a run of the demo on real weights is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revstep._specs import parse_scheme
from revstep.errors import ConfigError

from ..finetune.settings import END, documentation, library


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


# ---- What the model learns: text that every Python brings, whole documents of which are held out ----

#: One document in so many is held out.
EVERY = 10
#: Characters of the standard library's sources, where this Python has no documentation.
SOURCES = 2_000_000


@dataclass(frozen=True)
class Text:
    """Rows of token ids to train on (N, T), batches held out, and a phrase that says what it is."""

    train: Tensor
    held_out: list[dict[str, Tensor]]
    what: str


def read(tokenizer: Any, settings: Settings) -> Text:
    """The documentation of Python's ``help()``, else the standard library's sources.

    Raises:
        ConfigError: too little text for a row of each part.
    """
    try:
        documents, what = documentation().split(END), "Python's documentation"
    except ConfigError:
        documents, what = library(SOURCES).split(END), "the standard library's sources"
    held = documents[EVERY // 2 :: EVERY]
    train = [d for i, d in enumerate(documents) if i % EVERY != EVERY // 2]
    rows, tail = (_rows(tokenizer, part, settings.context) for part in (train, held))
    some = tail[torch.linspace(0, len(tail) - 1, min(len(tail), settings.held_out)).round().long()]
    return Text(rows, [{"input_ids": part} for part in some.split(settings.batch)], what)


def _rows(tokenizer: Any, documents: list[str], context: int) -> Tensor:
    ids: list[int] = []
    for document in documents:
        ids += [
            *tokenizer(document, add_special_tokens=False, verbose=False)["input_ids"],
            tokenizer.eos_token_id,
        ]
    if len(ids) < context:
        raise ConfigError(
            f"the text has {len(ids)} tokens, expected at least one row of {context}: give a smaller context"
        )
    return torch.tensor(ids[: len(ids) // context * context], dtype=torch.int64).view(-1, context)
