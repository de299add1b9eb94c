"""Times of a run: its span from any two of h, steps and the end, and where times to return lie between grid points."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError

#: A time this close to a grid point, in steps, is that grid point, beside what rounding of the times themselves makes.
SNAP = 1e-9
EPS = 2.0**-52


def number(name: str, value: Any) -> float:
    """A finite number from a number, a NumPy scalar or array of one element, or such a tensor."""
    given = value
    if isinstance(given, Tensor):
        given = given.detach().item() if given.numel() == 1 else None
    elif isinstance(given, np.ndarray):
        given = given.item() if given.size == 1 else None
    real = isinstance(given, (int, float, np.floating, np.integer)) and not isinstance(given, bool)
    if not real or not math.isfinite(given):
        raise ConfigError(f"{name} is {value!r}, expected a finite number or a scalar tensor")
    return float(given)


def whole(name: str, value: Any, least: int = 0) -> int:
    """A whole number from an int, a NumPy integer or an integer tensor of one element."""
    kind = "a non-negative integer" if least == 0 else "a positive integer"
    try:
        if isinstance(value, (bool, np.bool_)) or getattr(value, "dtype", None) == torch.bool:
            raise TypeError
        found = operator.index(value)
    except (TypeError, ValueError, RuntimeError):
        raise ConfigError(f"{name} is {value!r}, expected {kind}") from None
    if found < least:
        raise ConfigError(f"{name} is {value!r}, expected {kind}")
    return found


def span(h: Any, steps: Any, t0: Any, t1: Any, t_span: Any) -> tuple[Any, int, Any]:
    """``(h, steps, t0)`` from any two of h, steps and the end; h and t0 stay tensors where they are.

    Raises:
        ConfigError: fewer than two, or three that contradict each other, or an h that does not divide the span.
    """
    if t_span is not None:
        t0, t1 = _ends(t_span, t0, t1)
    start = number("t0", t0)
    if t1 is None:
        if h is None or steps is None:
            raise ConfigError(
                f"h is {h!r} and steps is {steps!r}: expected two of h, steps and the end t1 (or t_span=(t0, t1))",
            )
    elif steps is not None and h is None:
        steps = whole("steps", steps, 1)
        length = number("t1", t1) - start
        h = (t1 - t0) / steps if isinstance(t1, Tensor) or isinstance(t0, Tensor) else length / steps
    elif h is not None:
        counted = _divided(number("h", h), number("t1", t1) - start)
        if steps is not None and whole("steps", steps) != counted:
            raise ConfigError(f"h = {number('h', h)} and steps = {steps} end at another time than t1 = {t1}: leave one out")
        steps = counted
    else:
        raise ConfigError(f"t1 is {t1!r}, but neither h nor steps is given: expected one of them")
    step = number("h", h)
    if step == 0.0:
        raise ConfigError("h is 0, expected a non-zero step size (negative runs back in time)")
    return h, whole("steps", steps), t0


def _ends(t_span: Any, t0: Any, t1: Any) -> tuple[Any, Any]:
    if t1 is not None or not (isinstance(t0, float) and t0 == 0.0):
        raise ConfigError("t_span is given beside t0 or t1: expected t_span=(t0, t1) alone, or t0 and t1")
    try:
        first, last = t_span
    except (TypeError, ValueError):
        raise ConfigError(f"t_span is {t_span!r}, expected a pair (t0, t1)") from None
    return first, last


def _divided(h: float, length: float) -> int:
    count = length / h if h else math.nan
    if not math.isfinite(count):
        raise ConfigError("h is 0, expected a non-zero step size (negative runs back in time)")
    steps = round(count)
    if count < 0:
        raise ConfigError(f"h = {h} leads away from t1, which is {length} from t0: give h the sign of t1 - t0")
    if abs(count - steps) > SNAP * max(1.0, abs(count)):
        nearest = max(1, math.ceil(count))
        raise ConfigError(
            f"h = {h} does not divide the span of {length}: give steps instead; steps={nearest} makes h = {length / nearest:.17g}",
        )
    return steps


def times_of(t_eval: Any) -> list[float]:
    """The times to return as floats. Raises ConfigError for anything but a list of finite real numbers."""
    try:
        given = t_eval.detach().cpu() if isinstance(t_eval, Tensor) else t_eval
        array = np.asarray(given.numpy() if isinstance(given, Tensor) else given)
        if array.dtype.kind not in "iuf" and array.size:
            raise TypeError(f"dtype {array.dtype}")
        array = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"t_eval is {t_eval!r}, expected a list of times ({error})") from None
    if array.ndim != 1:
        raise ConfigError(f"t_eval has shape {array.shape}, expected a list of times, (M,)")
    return array.tolist()


def brackets(times: Sequence[float], t0: float, h: float, first: int, last: int) -> list[tuple[int, float]]:
    """``(n, theta)`` of each time: t = t0 + (n + theta) h with 0 <= theta < 1; theta is 0.0 on the grid.

    A time is on the grid where it is within what rounding makes of a grid time: t0 + n h has the rounding of its
    own size, so with t0 a Julian date that is more than 1e-9 of a small step.

    Raises:
        ConfigError: a time outside the integration's interval, or not finite.
    """
    start, end = t0 + first * h, t0 + last * h
    slack = SNAP + 4 * EPS * (max(abs(start), abs(end)) + abs(t0)) / abs(h) + EPS * (last - first)
    found = []
    for t in times:
        u = (t - t0) / h
        n = round(u) if math.isfinite(u) else first - 1
        if math.isfinite(u) and abs(u - n) > slack:
            n = math.floor(u)
        theta = 0.0 if abs(u - n) <= slack else u - n
        if not first <= n <= last or (n == last and theta):
            raise ConfigError(f"t_eval has {t!r}, expected times from {start} to {end}, the interval of the integration")
        found.append((n, theta))
    return found
