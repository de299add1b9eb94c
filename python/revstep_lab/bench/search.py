"""The largest batch that fits: doubling, then bisection, then longer runs until one holds."""

from __future__ import annotations

from collections.abc import Callable

from revstep.errors import ConfigError


def largest(fits: Callable[[int], bool], most: int, part: int = 16) -> int:
    """The largest batch up to ``most`` for which ``fits`` holds, to within one part in ``part``; 0 where 1 does not fit."""
    good, bad = 0, most + 1
    while good < most:
        batch = min(max(1, 2 * good), most)
        if not fits(batch):
            bad = batch
            break
        good = batch
    while bad - good > max(1, good // part):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def confirmed(batch: int, holds: Callable[[int], bool], part: int = 16) -> int:
    """``batch``, or the first below it, one part in ``part`` at a time, for which ``holds``; 0 where none does."""
    while batch > 0 and not holds(batch):
        batch -= max(1, batch // part)
    return batch


def line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """``(a, b, largest |y / (a + b x) - 1|)`` of the line with the least squares of relative deviations ``(a + b x) / y - 1``.

    Raises:
        ConfigError: fewer than three points, which any line fits nearly.
    """
    import numpy as np

    if len(x) < 3:
        raise ConfigError(f"{len(x)} points are given, expected at least 3: a line through fewer says nothing of growth")
    points, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    rows = np.stack([1 / values, points / values], axis=1)
    (a, b), *_ = np.linalg.lstsq(rows, np.ones_like(values), rcond=None)
    return float(a), float(b), float(np.max(np.abs(values / (a + b * points) - 1)))
