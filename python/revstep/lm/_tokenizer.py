"""Text to token ids and back: raw bytes, or a byte-level BPE trained on the text at hand. Both cover every
string.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from .._files import read_json
from .._imports import require
from ..errors import ConfigError

END = "<|endoftext|>"


class Tokenizer(Protocol):
    """What the rest of ``revstep.lm`` asks of a tokenizer. Ids are in ``[0, vocab)``; ``end`` separates
    documents.
    """

    vocab: int
    end: int

    def encode(self, text: str) -> np.ndarray: ...  # (n,) uint16 or uint32

    def decode(self, ids: Sequence[int]) -> str: ...

    def dumps(self) -> str: ...  # JSON that load_tokenizer takes back


class ByteTokenizer:
    """Ids 0 to 255 are the bytes of the text in UTF-8; 256 ends a document."""

    vocab, end = 257, 256

    def encode(self, text: str) -> np.ndarray:
        """(n,) token ids of the text, uint16 or uint32."""
        return np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8).astype(np.uint16)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; the end token has none."""
        return bytes(int(i) for i in ids if int(i) < 256).decode("utf-8", "replace")

    def dumps(self) -> str:
        """JSON that ``load_tokenizer`` takes back."""
        return json.dumps({"revstep_tokenizer": "bytes"})


class BPETokenizer:
    """A byte-level BPE (the ``tokenizers`` package): GPT-2's pre-tokenisation, merges learned from the given
    text.

    Raises:
        ConfigError: ``tokenizers`` is not installed.
    """

    def __init__(self, source: str):
        tokenizers = require("tokenizers", "a BPE tokenizer")
        self._bpe = tokenizers.Tokenizer.from_str(source)
        ids = self._bpe.get_vocab().values()
        self.vocab = len(ids)
        if max(ids, default=0) >= self.vocab:
            raise ConfigError(
                f"the tokenizer has the id {max(ids)} among {self.vocab}; expected 0 to {self.vocab - 1}"
            )
        self.end = self._bpe.token_to_id(END)
        if self.end is None:
            raise ConfigError(
                f"the tokenizer has no {END} token; expected the tokenizer.json of a training run"
            )
        self._bpe.encode_special_tokens = True  # a text that spells the end token out is text, not an end
        self._dtype = id_dtype(self.vocab)

    @classmethod
    def train(cls, texts: Iterable[str], vocab: int) -> BPETokenizer:
        """Learn at most ``vocab`` ids from ``texts`` (fewer when the text has fewer distinct pairs).

        Words of thousands of characters are cut for that: learning takes the square of a word's length.
        """
        tokenizers = require("tokenizers", "training a BPE tokenizer")
        bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
        bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
        bpe.decoder = tokenizers.decoders.ByteLevel()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=vocab,
            special_tokens=[END],
            show_progress=False,
            initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        )
        bpe.train_from_iterator((piece for text in texts for piece in cut_words(text)), trainer)
        return cls(bpe.to_str())

    def encode(self, text: str) -> np.ndarray:
        """(n,) token ids of the text, uint16 or uint32."""
        return np.asarray(self._bpe.encode(text, add_special_tokens=False).ids, dtype=self._dtype)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of these ids; the end token has none."""
        return self._bpe.decode([int(i) for i in ids], skip_special_tokens=True)

    def dumps(self) -> str:
        """JSON that ``load_tokenizer`` takes back."""
        return self._bpe.to_str()


#: Characters of a block, and what one is that lies inside a single word as the pre-tokenisation has it.
_BLOCK, _ONE_WORD = 500, re.compile(r"\w+|(?:[^\w\s]|_)+|\s+")


def cut_words(text: str) -> Iterator[str]:
    """``text`` in parts, cut only inside words of more than 500 characters: no word is longer than 1,500
    then. A text without such words stays whole.
    """
    begin = 0
    for end in range(_BLOCK, len(text), _BLOCK):
        if _ONE_WORD.fullmatch(text, end - _BLOCK, end):
            yield text[begin:end]
            begin = end
    yield text[begin:]


def id_dtype(vocab: int) -> np.dtype:
    """uint16 for up to 65,536 ids, else uint32."""
    return np.dtype(np.uint16 if vocab <= 1 << 16 else np.uint32)


def fingerprint(tokenizer: Tokenizer) -> str:
    """A short hash of the tokenizer: token ids made with one mean nothing to another."""
    return hashlib.sha256(tokenizer.dumps().encode()).hexdigest()[:16]


def make_tokenizer(spec: str, texts: Iterator[str]) -> Tokenizer:
    """The tokenizer for "bytes", or for "bpe:N" trained on ``texts``. ``TrainConfig`` has
    validated ``spec``.
    """
    return ByteTokenizer() if spec == "bytes" else BPETokenizer.train(texts, int(spec.partition(":")[2]))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer saved at ``path`` (a file that ``dumps`` made, or a ``tokenizer.json`` of the tokenizers
    package).

    Raises:
        ConfigError: no such file, or not a tokenizer.
    """
    try:
        found = read_json(path)
        kind = found.get("revstep_tokenizer", "bpe")
        text = json.dumps(found, ensure_ascii=False)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(
            f"cannot read a tokenizer from {path}: {error}; expected the tokenizer.json of a training run"
        ) from error
    if kind == "bytes":
        return ByteTokenizer()
    try:
        return BPETokenizer(text)
    except ConfigError:
        raise
    except Exception as error:  # the package raises a bare Exception for JSON it cannot use
        raise ConfigError(
            f"{path} is not a tokenizer: {error}; expected the tokenizer.json of a training run"
        ) from error
