"""What a run of the demo of stacks is made of: its settings, validated when made, and its text, the Python
standard library as bytes.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from revstep._specs import STORED_TRUNKS, parse_scheme
from revstep._values import whole
from revstep.errors import ConfigError
from revstep.lm._config import GPTConfig
from revstep.lm._data import Batches, prepare
from revstep.lm._sizes import refuse_model_beyond_memory
from revstep.schemes import available

DTYPES = ("auto", "float32", "bfloat16")
REFERENCE = "plain"


@dataclass(frozen=True)
class Settings:
    """A demo run. The defaults learn something visible in three minutes on two CPU cores.

    Attributes:
        minutes: about how long everything together may take; the number of steps follows from it.
        steps: optimiser steps of each stack; 0: from ``minutes`` and a short timing. Given, the losses can be
            repeated.
        seed: of the initial weights and of the batches.
        layers, width, context, batch: the model, and the sequences of a step.
        schemes: stacks beside the plain one, as ``name`` or ``name:option=value``; empty: every registered
            scheme.
        dtype: "float32", "bfloat16" (autocast), or "auto": bfloat16 where this machine computes it at least
            as fast.
        device: a torch device, or "auto" (cuda if there is one).
        lr: peak learning rate.
        out: folder for the figures and numbers; progress: a progress bar on stderr.

    Raises:
        ConfigError: a value that cannot be used.
    """

    minutes: float = 3.0
    steps: int = 0
    seed: int = 0
    layers: int = 12
    width: int = 64
    context: int = 64
    batch: int = 8
    schemes: tuple[str, ...] = ()
    dtype: str = "auto"
    device: str = "auto"
    lr: float = 5e-3
    out: str = "revstep-demo"
    progress: bool = True

    def __post_init__(self) -> None:
        if not math.isfinite(self.minutes) or self.minutes <= 0:
            raise ConfigError(f"minutes is {self.minutes!r}; expected a number above 0, e.g. 3")
        if self.steps < 0:
            raise ConfigError(
                f"steps is {self.steps!r}; expected a whole number, or 0 to take as many as fit into the"
                " minutes"
            )
        if self.layers < 1:
            raise ConfigError(
                f"layers is {self.layers!r}; expected at least 1, there is nothing to rebuild without one"
            )
        if self.batch < 1:
            raise ConfigError(f"batch is {self.batch!r}; expected at least 1")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}; expected one of {', '.join(DTYPES)}")
        if not self.out:
            raise ConfigError("out is empty; name a folder for the figures and numbers")
        whole("seed", self.seed, 0)
        refuse_model_beyond_memory(self.model(vocab=257), trained=True)
        for name in self.stacks():
            spec = parse_scheme(name)
            if spec.reversible:
                spec.make()

    @property
    def heads(self) -> int:
        """The most heads, up to 8, that divide the width and leave at least 16 channels each."""
        return next(h for h in (8, 4, 2, 1) if h == 1 or (self.width % h == 0 and self.width // h >= 16))

    def model(self, vocab: int) -> GPTConfig:
        """The model's shape; all logits at once, since bytes have few."""
        return GPTConfig(
            vocab=vocab,
            context=self.context,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            loss_chunk=0,
        )

    def stacks(self) -> list[str]:
        """The stacks in the order of the table: the plain one, then the chosen schemes, or all the registry
        has.
        """
        chosen = self.schemes or tuple(available())
        return [REFERENCE, *dict.fromkeys(name for name in chosen if name != REFERENCE)]

    def reversible(self) -> list[str]:
        return [name for name in self.stacks() if name not in STORED_TRUNKS]

    def command(self, steps: int, dtype: str, device: str) -> str:
        """The command line that repeats a run of this many steps, with what "auto" came to be."""
        parts = [
            f"--steps {steps}",
            f"--seed {self.seed}",
            f"--layers {self.layers}",
            f"--width {self.width}",
            f"--dtype {dtype}",
            f"--device {device}",
        ]
        return " ".join(["revstep demo", *parts, *(["--schemes", *self.schemes] if self.schemes else [])])


# ------------------------------------------------------------------------------------------------------------
# The text: the Python standard library as bytes, and how well one can guess them knowing only how often each
# occurs.

#: Share of the text, at its end (whole files but the first), that no stack trains on.
HELD_OUT = 0.05


@dataclass(frozen=True)
class Text:
    """Batches of both parts, and facts for the record.

    Attributes:
        train, validation: windows of token ids.
        vocab: 256 bytes and the end of a file.
        unigram: nats a byte of the validation part under the training part's byte frequencies.
        facts: files, bytes, source; plain JSON values.
    """

    train: Batches
    validation: Batches
    vocab: int
    unigram: float
    facts: dict


@contextlib.contextmanager
def standard_library(settings: Settings) -> Iterator[Text]:
    """The tokens lie in a temporary folder that is gone afterwards.

    Raises:
        ConfigError: this Python has no sources on disk, or too few for the context.
    """
    with tempfile.TemporaryDirectory(prefix="revstep-demo-") as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # files that are not UTF-8 are counted below
            corpus = prepare(folder, tokenizer="bytes")
        head, tail = corpus.split(HELD_OUT, settings.context)
        facts = {
            "source": "the Python standard library's sources on this machine",
            "files": corpus.header["files"],
            "skipped": len(corpus.header["skipped"]),
            "training_tokens": len(head),
            "validation_tokens": len(tail),
        }
        batches = [Batches(part, settings.batch, settings.context, settings.seed) for part in (head, tail)]
        yield Text(
            *batches, corpus.tokenizer.vocab, unigram_entropy(head, tail, corpus.tokenizer.vocab), facts
        )
        # The map of the file, which some systems do not delete while it is open.
        del (corpus, head, tail, batches)


def unigram_entropy(head: np.ndarray, tail: np.ndarray, vocab: int) -> float:
    """Cross entropy of ``tail`` under the frequencies in ``head`` (one added to each count), in nats."""
    counts = np.bincount(head, minlength=vocab) + 1.0
    share = np.bincount(tail, minlength=vocab) / len(tail)
    return math.log(counts.sum()) - float(share @ np.log(counts))
