"""What the model learns: text that every Python brings, whole documents of which are held out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revstep.errors import ConfigError

from ..finetune.text import END, documentation, library
from .settings import Settings

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
            f"the text has {len(ids)} tokens, expected at least one row of {context}: give a smaller context",
        )
    return torch.tensor(ids[: len(ids) // context * context], dtype=torch.int64).view(-1, context)
