"""Seconds of one training step, interleaved: a machine whose speed drifts gives each method its share of the drift."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from torch import nn

from revstep import hf
from revstep.hf.finetune import checkpointed
from revstep.hf.folders import load_model

from .settings import Settings
from .text import Text
from .tune import METHODS, STORED

ROUNDS = 5


def speed(folder: Path, text: Text, settings: Settings) -> list[dict[str, Any]]:
    """Forward and backward of full fine-tuning by each method, in rounds A B C A B C ...; the ratio to plain is the median of the rounds' ratios."""
    models = {label: _prepared(folder, text, scheme) for label, scheme in METHODS.items()}
    ids = text.train[: settings.batch].clone()
    seconds: dict[str, list[float]] = {label: [] for label in models}
    for model in models.values():
        _step(model, ids)  # warms up
    for _ in range(ROUNDS):
        for label, model in models.items():
            with checkpointed(model, METHODS[label] == "checkpoint"):
                began = time.perf_counter()
                _step(model, ids)
                seconds[label].append(time.perf_counter() - began)
    return [
        {"method": label, "seconds": [round(s, 5) for s in values], "ratio": round(statistics.median(a / b for a, b in zip(values, seconds["plain"])), 3)}
        for label, values in seconds.items()
    ]


def _prepared(folder: Path, text: Text, scheme: str) -> nn.Module:
    model = load_model(folder)
    if scheme not in STORED:
        hf.convert(model, scheme, calibration=text.train[:8], say=None)
    return model.train()


def _step(model: nn.Module, ids: Any) -> None:
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)
