"""The text: the Python standard library as bytes, and how well one can guess them knowing only how often each occurs."""

from __future__ import annotations

import contextlib
import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from revstep.lm.data import Batches, prepare

from .settings import Settings

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
            "source": "the Python standard library's sources on this machine", "files": corpus.header["files"], "skipped": len(corpus.header["skipped"]),
            "training_tokens": len(head), "validation_tokens": len(tail),
        }  # fmt: skip
        batches = [Batches(part, settings.batch, settings.context, settings.seed) for part in (head, tail)]
        yield Text(*batches, corpus.tokenizer.vocab, unigram_entropy(head, tail, corpus.tokenizer.vocab), facts)
        del corpus, head, tail, batches  # the map of the file, which some systems do not delete while it is open


def unigram_entropy(head: np.ndarray, tail: np.ndarray, vocab: int) -> float:
    """Cross entropy of ``tail`` under the frequencies in ``head`` (one added to each count), in nats."""
    counts = np.bincount(head, minlength=vocab) + 1.0
    share = np.bincount(tail, minlength=vocab) / len(tail)
    return math.log(counts.sum()) - float(share @ np.log(counts))
