"""Text files to one flat file of token ids, read back as a memmap; batches drawn by a generator that can be
saved.

A corpus is a folder with ``tokens.bin`` (uint16 or uint32, little endian), ``tokens.json`` (what made it) and
``tokenizer.json``. Documents follow each other in a deterministic order, each ended by the tokenizer's end
id.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .._files import naming, open_regular, read_bytes, read_json, sealed, unsealed, write_atomic
from .._values import one_of, shown, whole
from ..errors import ConfigError, RevstepError
from ._tokenizer import Tokenizer, fingerprint, id_dtype, load_tokenizer, make_tokenizer

#: 2 since the header has a checksum of itself and of tokens.bin; 1 is read as it is.
FORMAT, UNSEALED = 2, 1

#: Folders below the standard library that are not its own sources, or are tests.
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}


def standard_library(max_bytes: int = 0) -> list[Path]:
    """The ``.py`` files of the Python standard library on this machine: no installed packages, no tests;
    sorted.

    ``max_bytes`` ends the list before the files exceed that size in all (0: every file).

    Raises:
        ConfigError: this Python has no sources on disk (a zipped or stripped one), or none that small.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = sorted(
        path for path in root.rglob("*.py") if not _NOT_STDLIB.intersection(path.relative_to(root).parts[:-1])
    )
    if max_bytes:
        sizes = itertools.accumulate(path.stat().st_size for path in found)
        found = [path for path, size in zip(found, sizes, strict=True) if size <= max_bytes]
    if not found:
        raise ConfigError(
            f"no Python sources in {root} (limit {max_bytes or 'none'}): name files or folders with --data,"
            " or raise the limit"
        )
    return found


def find_files(paths: Sequence[str | Path], extensions: Sequence[str]) -> list[tuple[Path, bool]]:
    """Files named in ``paths`` and, of folders, the files below with one of ``extensions``: ``(path,
    named)``, no file twice.

    In the order of ``paths``, each folder sorted by its relative path, so two machines with the same tree
    agree.

    Raises:
        ConfigError: a path that is not there, or nothing found.
    """
    found: dict[Path, bool] = {}
    for given in map(Path, paths):
        if given.is_dir():
            below = (path for path in given.rglob("*") if path.suffix in extensions and path.is_file())
            for path in sorted(below, key=lambda path: path.relative_to(given).as_posix()):
                found.setdefault(path.resolve(), False)
        elif given.is_file():
            found[given.resolve()] = True
        else:
            said = f"{given} is a pipe or a device" if given.exists() else f"no file or folder {given}"
            raise ConfigError(
                f"{said}; expected text files or folders that hold {', '.join(extensions)} files"
            )
    if not found:
        raise ConfigError(
            f"no {', '.join(extensions)} file in {', '.join(map(str, paths))}; name files, or other endings"
            " with --extensions"
        )
    return list(found.items())


def read_texts(
    files: Iterable[tuple[Path, bool]], max_bytes: int = 0, skipped: list[str] | None = None
) -> Iterator[str]:
    """The text of each file, as UTF-8, up to ``max_bytes`` in all (0: no limit).

    A file found in a folder that is not UTF-8 is left out and its name put in ``skipped``; a file named by
    the caller raises.

    Raises:
        ConfigError: a named file is not UTF-8 or cannot be read.
    """
    left = max_bytes or None
    for path, named in files:
        try:
            raw = read_bytes(path)
            cut = left is not None and len(raw) > left
            if cut:
                raw = raw[:left].decode("utf-8", "ignore").encode()  # not in the middle of a character
            text = raw.decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if named:
                raise ConfigError(
                    f"cannot read {path} as UTF-8 text: {error}; convert it, or leave it out"
                ) from error
            if skipped is not None:
                skipped.append(f"{path}: {error}")
            continue
        yield text
        if left is not None:
            left -= len(raw)
            if cut or left == 0:
                return


@dataclass(frozen=True)
class Corpus:
    """Token ids on disk.

    Attributes:
        tokens: (n,) uint16 or uint32 memmap, read only.
        tokenizer: what made them.
        header: the JSON beside them: format, dtype, count, vocab, tokenizer (hash), sources, files, skipped.
    """

    tokens: np.ndarray
    tokenizer: Tokenizer
    header: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Corpus:
        """Open what ``prepare`` wrote.

        Raises:
            ConfigError: files missing, of another format, or that do not belong together.
        """
        folder = Path(folder)
        header = read_header(folder)
        try:
            dtype = np.dtype(header["dtype"])
            with open_regular(folder / "tokens.bin") as file:
                size, digest = os.fstat(file.fileno()).st_size, _digest(file) if "sha256" in header else None
        except OSError as error:
            raise ConfigError(f"cannot open the tokens in {folder}: {error}; {_AGAIN}") from error
        if size != header["count"] * dtype.itemsize:
            raise ConfigError(
                f"{folder}/tokens.bin holds {size} bytes; its header promises {header['count']} {dtype};"
                f" {_AGAIN}"
            )
        if digest != header.get("sha256"):
            raise ConfigError(f"{folder}/tokens.bin is not what was written (its checksum differs); {_AGAIN}")
        tokenizer = matching_tokenizer(folder, header)
        return cls(np.memmap(folder / "tokens.bin", dtype=dtype, mode="r"), tokenizer, header)

    def split(self, val_fraction: float, context: int) -> tuple[np.ndarray, np.ndarray]:
        """Training part and validation tail, both views. Each holds at least one window of ``context + 1``
        ids, so of a short text the tail is a larger share than ``val_fraction``.

        Raises:
            ConfigError: too little text for two windows.
        """
        held = max(int(len(self.tokens) * val_fraction), context + 1)
        if len(self.tokens) - held < context + 1:
            raise ConfigError(
                f"the text has {len(self.tokens)} tokens; with context {context} at least {2 * (context + 1)}"
                " are needed: give more text or a smaller --context"
            )
        return self.tokens[:-held], self.tokens[-held:]


_AGAIN = "prepare the data again into another folder"


def read_header(folder: Path) -> dict[str, Any]:
    """What ``tokens.json`` says.

    Raises:
        ConfigError: it cannot be read, is of another format, or not what was written.
    """
    try:
        header = read_json(folder / "tokens.json")
        found = header["format"]
        if found == FORMAT:
            header = unsealed(header)
        elif found != UNSEALED:
            raise ValueError(f"they are of format {shown(found)}, this version reads {UNSEALED} and {FORMAT}")
        one_of("dtype", header["dtype"], ("<u2", "<u4"))
        whole("count", header["count"], 1)
        whole("vocab", header["vocab"], 2)
        if not isinstance(header["tokenizer"], str) or (found == FORMAT and "sha256" not in header):
            raise ValueError("the hashes are missing")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"cannot open the tokens in {folder}: {error}; {_AGAIN}") from error
    return header


def matching_tokenizer(folder: Path, header: dict[str, Any]) -> Tokenizer:
    """The tokenizer in ``folder``, if it is the one that made the tokens. Raises ConfigError."""
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if fingerprint(tokenizer) != header["tokenizer"]:
        raise ConfigError(
            f"{folder}/tokenizer.json is not the one that made tokens.bin (hash {fingerprint(tokenizer)},"
            " expected"
            f" {header['tokenizer']})"
        )
    return tokenizer


def _digest(file: BinaryIO) -> str:
    found = hashlib.sha256()
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def prepare(
    folder: str | Path,
    data: Sequence[str] = (),
    *,
    tokenizer: str = "bpe:4096",
    extensions: Sequence[str] = (".py", ".txt", ".md"),
    max_bytes: int = 0,
) -> Corpus:
    """Tokenise ``data`` (nothing: the standard library) into ``folder``, one file at a time, and open it.

    Raises:
        ConfigError: nothing to read, or a named file that is not UTF-8 text.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    files = find_files(data, extensions) if data else [(path, False) for path in standard_library()]
    skipped: list[str] = []
    made = make_tokenizer(tokenizer, read_texts(files, max_bytes))
    folder.mkdir(parents=True, exist_ok=True)
    dtype = id_dtype(made.vocab)
    count = 0
    documents = 0
    digest = hashlib.sha256()
    part = folder / "tokens.bin.part"
    try:
        with naming(folder / "tokens.bin"), part.open("wb") as out:
            for text in read_texts(files, max_bytes, skipped):
                ids = np.append(made.encode(text), dtype.type(made.end)).astype(dtype)
                raw = ids.astype(dtype.newbyteorder("<")).tobytes()
                out.write(raw)
                digest.update(raw)
                count, documents = count + len(ids), documents + 1
        os.replace(part, folder / "tokens.bin")
    finally:
        part.unlink(missing_ok=True)
    if skipped:
        warnings.warn(
            f"{len(skipped)} of {len(files)} files were left out, the first: {skipped[0]}",
            UserWarning,
            stacklevel=2,
        )
    header = {
        "format": FORMAT,
        "dtype": dtype.newbyteorder("<").str,
        "count": count,
        "vocab": made.vocab,
        "sha256": digest.hexdigest(),
        "tokenizer": fingerprint(made),
        "tokenizer_spec": tokenizer,
        "sources": list(map(str, data)) or ["the Python standard library"],
        "files": documents,
        "skipped": skipped,
    }
    write_atomic(folder / "tokenizer.json", made.dumps().encode())
    # Last: its presence says the rest is whole.
    write_atomic(folder / "tokens.json", sealed(header))
    return Corpus.open(folder)


class Batches:
    """Random windows of a token array, from a generator of its own whose state can be saved.

    ``next()`` -> inputs and targets, each (batch, context) int64 on the CPU; targets are the inputs moved on
    by one.
    """

    def __init__(self, tokens: np.ndarray, batch: int, context: int, seed: int):
        if len(tokens) < context + 1:
            raise ConfigError(
                f"{len(tokens)} tokens cannot fill a window of {context + 1}; give more text or a smaller"
                " context"
            )
        self.tokens = tokens
        self.batch = batch
        self.context = context
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def next(self) -> tuple[Tensor, Tensor]:
        """A batch: (tokens, targets), each (batch, context) int64, targets one token further on."""
        starts = self._generator.integers(0, len(self.tokens) - self.context, size=self.batch)
        return self._windows(starts)

    def _windows(self, starts: Iterable[int]) -> tuple[Tensor, Tensor]:
        # (batch, context + 1)
        rows = np.stack([self.tokens[s : s + self.context + 1] for s in starts]).astype(np.int64)
        window = torch.from_numpy(rows)
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()

    def spread(self, count: int) -> Iterator[tuple[Tensor, Tensor]]:
        """``count`` batches at evenly spaced places, the same ones each time; for validation."""
        places = np.linspace(0, len(self.tokens) - self.context - 1, num=count * self.batch).astype(np.int64)
        for i in range(count):
            yield self._windows(places[i * self.batch : (i + 1) * self.batch])

    def state_dict(self) -> str:
        """The generator's state, as JSON text (its integers are wider than 64 bits)."""
        return json.dumps(self._generator.bit_generator.state)

    def load_state_dict(self, state: str) -> None:
        """The inverse of ``state_dict``.

        Raises:
            RevstepError: not such a state.
        """
        try:
            self._generator.bit_generator.state = json.loads(state)
        except (ValueError, TypeError, KeyError) as error:
            raise RevstepError(
                f"the saved place in the data cannot be read: {error}; resume from an older checkpoint"
            ) from error
