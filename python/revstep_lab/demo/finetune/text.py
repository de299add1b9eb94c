"""Two texts that every Python brings: the sources of its standard library, and the language's documentation in English."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from revstep.errors import ConfigError
from revstep.extras import require
from revstep.lm import data

from .settings import Settings

END = "<|endoftext|>"
#: Share of each text, at its end, that nothing trains on.
HELD_OUT = 0.08


@dataclass(frozen=True)
class Text:
    """Rows of token ids (N, T): to train on, and held out (as batches of keyword arguments)."""

    train: Tensor
    held_out: list[dict[str, Tensor]]


def library(characters: int) -> str:
    """Sources of the standard library up to that many characters, a file from here and there; without the documentation they contain."""
    files = [path for path in data.standard_library() if path.parent.name != "pydoc_data"]
    found, have = [], 0
    for path in files[::2] + files[1::2]:
        text = path.read_text(encoding="utf-8", errors="ignore")
        if have + len(text) <= characters:
            found.append(text)
            have += len(text)
    if not found:
        raise ConfigError(f"no file of the standard library has fewer than {characters} characters: read more")
    return END.join(found)


def documentation() -> str:
    """The topics of Python's ``help()``: English prose about the language.

    Raises:
        ConfigError: this Python was installed without them.
    """
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise ConfigError("this Python has no pydoc_data.topics, the text to fine-tune on; expected a complete standard library") from error
    return END.join(topics[name] for name in sorted(topics))


def make_tokenizer(text: str, vocab: int, context: int) -> Any:
    """A byte-level BPE of ``vocab`` ids trained on ``text``, as transformers has it."""
    tokenizers, transformers = (require(name, "the worked example", "hf") for name in ("tokenizers", "transformers"))
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        text.split(END), tokenizers.trainers.BpeTrainer(vocab_size=vocab, special_tokens=[END], show_progress=False, initial_alphabet=alphabet)
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END, pad_token=END, model_max_length=context)


def as_rows(text: str, tokenizer: Any, settings: Settings) -> Text:
    """The text cut to rows of ``context`` ids, its end held out."""
    pieces = tokenizer.backend_tokenizer.encode_batch([piece for piece in text.split(END) if piece])
    ids = [i for piece in pieces for i in (*piece.ids, tokenizer.eos_token_id)]
    rows = torch.tensor(ids[: len(ids) // settings.context * settings.context], dtype=torch.int64).view(-1, settings.context)
    held = max(int(HELD_OUT * len(rows)), settings.batch)
    if len(rows) < held + settings.batch:
        raise ConfigError(f"the text has {len(rows)} rows of {settings.context} tokens, expected at least {2 * settings.batch}: read more")
    tail = rows[len(rows) - held :]
    some = tail[torch.linspace(0, len(tail) - 1, min(len(tail), settings.batches * settings.batch)).long()]
    return Text(rows[: len(rows) - held], [{"input_ids": batch} for batch in some.split(settings.batch)])
