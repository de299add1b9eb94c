"""The worked example ``revstep demo --hf`` from start to end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from revstep._files import write_atomic
from revstep._imports import require
from revstep._locks import only_writer
from revstep.hf._settings import quiet
from revstep.hf._sources import load_model

from ...bench.runner import environment
from . import record
from .settings import Settings, Text, as_rows, documentation, library, make, make_tokenizer
from .tune import distil, measure, sample, speed, tune_all

FILES = ("hf.json", "hf.md", "hf_dial.png", "hf_curves.png")


@dataclass
class Outcome:
    """``code``: 0; 1: a state was not rebuilt bit for bit. ``document``: everything in hf.json; ``summary``
    in words; ``written`` in ``folder``.
    """

    folder: Path
    code: int = 0
    document: dict[str, Any] = field(default_factory=dict)
    summary: str = ""
    written: tuple[str, ...] = FILES


def run(
    settings: Settings, command: str = "revstep demo --hf", say: Callable[[str], None] = print
) -> Outcome:
    """Train, convert, fine-tune, revert, generate, draw and write.

    Raises:
        ConfigError: a value that cannot be used, or packages of revstep[lm] or revstep[hf] that are missing;
            nothing has been computed yet.
        OSError: the folder cannot be written.
    """
    # Of the sources as they are loaded now.
    began, where = (time.perf_counter(), environment(settings.device) | {"threads": 1})
    require("matplotlib", "drawing the figures")
    for package in ("transformers", "accelerate", "peft"):
        require(package, "the worked example", "hf")
    with only_writer(settings.out):
        return _run(settings, command, say, began, where)


def _run(
    settings: Settings, command: str, say: Callable[[str], None], began: float, where: dict[str, Any]
) -> Outcome:
    folder = Path(settings.out)
    threads = torch.get_num_threads()
    try:
        # Models this small lose more to waiting threads than they gain, ten times on a busy machine.
        torch.set_num_threads(1)
        with quiet():
            texts = _texts(settings, say)
            families = {
                family: _family(family, settings, *texts, folder, say) for family in settings.families
            }
    finally:
        torch.set_num_threads(threads)
    goals = record.goals(families)
    document = {
        "environment": where,
        "command": command,
        "seconds": round(time.perf_counter() - began, 1),
        "settings": {k: v for k, v in asdict(settings).items() if k != "out"},
        "families": families,
        "goals": goals,
        "exact": record.exact(families),
    }
    document["summary"] = record.summary(document)
    _write(folder, document, settings)
    return Outcome(folder, 0 if document["exact"] else 1, document, document["summary"])


def _texts(settings: Settings, say: Callable[[str], None]) -> tuple[Text, Text, Any]:
    code = library(settings.text)
    tokenizer = make_tokenizer(code, settings.vocab, 4 * settings.context)
    first, second = as_rows(code, tokenizer, settings), as_rows(documentation(), tokenizer, settings)
    say(
        f"texts: {first.train.numel():,} tokens of the standard library's sources, {second.train.numel():,}"
        f" of its documentation; {len(tokenizer)} ids"
    )
    return first, second, tokenizer


def _family(
    family: str,
    settings: Settings,
    first: Text,
    second: Text,
    tokenizer: Any,
    folder: Path,
    say: Callable[[str], None],
) -> dict[str, Any]:
    base, deployed = folder / family, folder / f"{family}-tuned"
    began = time.perf_counter()
    trained = make(family, settings, first, tokenizer, base)
    model = load_model(base)
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{record.NAMES[family]}: {parameters / 1e6:.2f} M parameters, {settings.steps} steps in"
        f" {time.perf_counter() - began:.0f} s"
    )
    original, dial = measure(base, first)
    say(
        "\n".join(
            f"  {r['scheme']:22} {r['start']:7} {r['loss']:.4f} {record.percent(r['change'])}" for r in dial
        )
    )
    tuned = tune_all(base, second, settings, deployed, say)
    prompt = "The following sections describe"
    return {
        "class": type(model).__name__,
        "parameters": parameters,
        "training_loss": [round(v, 4) for v in trained.losses],
        "original": original,
        "dial": dial,
        "distilled": distil(base, first, settings),
        "tuned": tuned,
        "speed": speed(base, second, settings),
        "sample": {"prompt": prompt, "text": sample(deployed, prompt, 48)},
        "unchanged_class": type(load_model(deployed)).__name__,
    }


def _write(folder: Path, document: dict[str, Any], s: Settings) -> None:
    where = f"{s.layers} layers, width {s.width}, trained here for {s.steps} steps"
    write_atomic(folder / "hf.json", (json.dumps(document, indent=1) + "\n").encode())
    write_atomic(folder / "hf.md", record.page(document).encode())
    record.draw_dial(
        folder / "hf_dial.png",
        document["families"],
        f"GPT-2 and Llama classes of transformers, {where}; held-out text",
    )
    record.draw_curves(
        folder / "hf_curves.png",
        document["families"],
        f"{where}, then {s.tune_steps} steps on Python's documentation; trailing mean",
    )
