"""Values between grid points, from the two points around them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..errors import ConfigError

#: A time this close to a grid point, in steps, is that grid point (t0 + n h is rounded a few times; 1e-9 of a step is far above).
SNAP = 1e-9


def brackets(t_eval: Sequence[float], t0: float, h: float, steps: int) -> list[tuple[int, float]]:
    """``(n, theta)`` of each time: t = t0 + (n + theta) h with 0 <= theta < 1; theta is 0.0 on the grid.

    Raises:
        ConfigError: a time outside the integration's interval, or not finite.
    """
    found = []
    for t in t_eval:
        u = (t - t0) / h if h else math.nan
        n = round(u) if math.isfinite(u) else -1
        if math.isfinite(u) and abs(u - n) > SNAP:
            n = math.floor(u)
        theta = 0.0 if abs(u - n) <= SNAP else u - n
        if not 0 <= n <= steps or (n == steps and theta):
            raise ConfigError(f"t_eval has {t!r}, expected times from {t0} to {t0 + steps * h}, the interval of the integration")
        found.append((n, theta))
    return found


def hermite(theta: Any, h: Any, y0: Tensor, f0: Tensor, y1: Tensor, f1: Tensor) -> Tensor:
    """Cubic Hermite interpolant at t_n + theta h (error O(h**4)); Hairer, Norsett, Wanner, Solving ODEs I, II.6."""
    a, b = theta * theta * (3 - 2 * theta), theta * (theta - 1)
    return y0 + a * (y1 - y0) + h * b * ((theta - 1) * f0 + theta * f1)
