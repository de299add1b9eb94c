"""Values between grid points, from the two points around them."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def hermite(theta: Any, h: Any, y0: Tensor, f0: Tensor, y1: Tensor, f1: Tensor) -> Tensor:
    """Cubic Hermite interpolant at t_n + theta h (error O(h**4)); Hairer, Norsett, Wanner, Solving ODEs I, II.6."""
    a, b = theta * theta * (3 - 2 * theta), theta * (theta - 1)
    return y0 + a * (y1 - y0) + h * b * ((theta - 1) * f0 + theta * f1)
