"""How far a fine-tuning is: a bar on a terminal, and the time left."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from .._imports import require


@contextlib.contextmanager
def progress_bar(steps: int, wanted: bool) -> Iterator[Any]:
    """A progress bar on stderr; None where none is wanted or there is no terminal to show it."""
    if not (wanted and sys.stderr.isatty()):
        yield None
        return
    tqdm = require("tqdm", "the progress bar (or turn it off)", "hf").tqdm
    with tqdm(total=steps, unit="step", desc="fine-tuning", dynamic_ncols=True) as bar:
        yield bar


def time_left(seconds: Sequence[float], steps: int) -> str:
    """How long ``steps`` more take, from the median of the last ones: ``2 min 05 s left``."""
    last = sorted(seconds[-20:])
    left = round(steps * last[len(last) // 2]) if last else 0
    return f"{left // 60} min {left % 60:02d} s left" if left >= 60 else f"{left} s left"
