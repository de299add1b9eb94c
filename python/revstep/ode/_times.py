"""Times of a run: its span from any two of h, steps and the end, and where times to return lie between grid
points.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError

#: A time this close to a grid point, in steps, is that grid point, beside what rounding of the times
#: themselves makes.
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
        ConfigError: fewer than two, or three that contradict each other, or an h that does not divide the
            span.
    """
    if t_span is not None:
        t0, t1 = _ends(t_span, t0, t1)
    start = number("t0", t0)
    if t1 is None:
        if h is None or steps is None:
            raise ConfigError(
                f"h is {h!r} and steps is {steps!r}: expected two of h, steps and the end t1 (or t_span=(t0,"
                " t1))"
            )
    elif steps is not None and h is None:
        steps = whole("steps", steps, 1)
        length = number("t1", t1) - start
        h = (t1 - t0) / steps if isinstance(t1, Tensor) or isinstance(t0, Tensor) else length / steps
    elif h is not None:
        counted = _divided(number("h", h), number("t1", t1) - start)
        if steps is not None and whole("steps", steps) != counted:
            raise ConfigError(
                f"h = {number('h', h)} and steps = {steps} end at another time than t1 = {t1}: leave one out"
            )
        steps = counted
        if isinstance(t1, Tensor) and t1.requires_grad and counted:  # the end moves the steps
            moved = (t1 - t0) / counted
            h = moved - moved.detach() + h
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
    if not h:
        raise ConfigError("h is 0, expected a non-zero step size (negative runs back in time)")
    count = length / h
    if not math.isfinite(count):
        raise ConfigError(f"h is {h}, of which no number that there is makes a span of {length}: give steps")
    steps = round(count)
    if count < 0:
        raise ConfigError(
            f"h = {h} leads away from t1, which is {length} from t0: give h the sign of t1 - t0"
        )
    if abs(count - steps) > SNAP * max(1.0, abs(count)):
        nearest = max(1, math.ceil(count))
        raise ConfigError(
            f"h = {h} does not divide the span of {length}: give steps instead; steps={nearest} makes h ="
            f" {length / nearest:.17g}"
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
    """``(n, theta)`` of each time: t = t0 + (n + theta) h with 0 <= theta < 1; theta is 0.0 at a step.

    A time is a step's where it is within what rounding makes of that: t0 + n h has the rounding of
    its own size, so with t0 a Julian date that is more than 1e-9 of a small step.

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
            raise ConfigError(
                f"t_eval has {t!r}, expected times from {start} to {end}, the interval of the integration"
            )
        found.append((n, theta))
    return found


# ---- The times that a caller of ``odeint`` gives, and how many steps fit between them ----

#: A span this close to a whole number of steps, relative to the span, is that number in any dtype.
RELATIVE = 1e-9
#: What the rounding of the times may hide is never more than this part of a step.
LARGEST_SLACK = 0.1


@dataclass(frozen=True)
class Times:
    """The times of a solution.

    Attributes:
        given: the caller's tensor (T,), or one made of the caller's list or array.
        exact: the same in float64, with the graph of ``given``.
        values: the same as Python floats.
        rounding: how far a time may be from the number that its dtype was to hold.
    """

    given: Tensor
    exact: Tensor
    values: list[float]
    rounding: float

    @property
    def span(self) -> float:
        """From the first to the last time; negative where they fall."""
        return self.values[-1] - self.values[0]

    @property
    def wants_gradient(self) -> bool:
        """Whether a gradient with respect to the times is asked for."""
        return self.given.requires_grad and torch.is_grad_enabled()


def read_times(t: Any) -> Times:
    """The times of a tensor, an array or a list of numbers.

    Raises:
        ConfigError: anything but one axis of finite real numbers that strictly rise or strictly fall.
    """
    if isinstance(t, (list, tuple)) and any(isinstance(x, Tensor) for x in t):
        raise ConfigError("t is a list of tensors, expected one tensor: torch.stack(t) keeps their graph")
    if isinstance(t, Tensor):
        if t.dtype.is_complex or t.dtype == torch.bool:
            raise ConfigError(f"t is {t.dtype}, expected real times: a tensor of a floating or integer dtype")
        given, eps = t, torch.finfo(t.dtype).eps if t.dtype.is_floating_point else 0.0
    else:
        given, eps = _from_array(t)
    if given.ndim != 1 or not len(given):
        raise ConfigError(f"t has shape {tuple(given.shape)}, expected (T,) with at least one time")
    exact = given.to(torch.float64)
    values = exact.detach().tolist()
    if not all(map(math.isfinite, values)):
        raise ConfigError(f"t has {next(v for v in values if not math.isfinite(v))}, expected finite times")
    _check_monotone(values, "t")
    largest = max(map(abs, values))
    return Times(given, exact, values, max(eps, torch.finfo(torch.float64).eps) * largest)


def _from_array(t: Any) -> tuple[Tensor, float]:
    """``(tensor, eps)`` of an array or a list of numbers; the numbers of a list are float64."""
    if isinstance(t, np.ma.MaskedArray) and np.ma.is_masked(t):
        raise ConfigError("t is a masked array with masked times, expected times only: write t.compressed()")
    try:
        array = np.asarray(t)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"t is {type(t).__name__} {t!r}, expected a tensor of times: {error}") from error
    if array.dtype.kind not in "iuf":
        got = f"{type(t).__name__} with values of {array.dtype}"
        raise ConfigError(f"t is {got}, expected real times: numbers, such as seconds since the start")
    eps = float(np.finfo(array.dtype).eps) if array.dtype.kind == "f" else 0.0
    return torch.from_numpy(array.astype(np.float64)), eps


def _check_monotone(values: list[float], name: str) -> None:
    gaps = [b - a for a, b in pairwise(values)]
    if not (all(g > 0 for g in gaps) or all(g < 0 for g in gaps)):
        raise ConfigError(f"{name} is not strictly increasing or decreasing")


def check_grid(grid: Any, times: Times) -> Tensor:
    """A grid made by a ``grid_constructor``, or of a ``step_size``, in float64 with its graph.

    Raises:
        ConfigError: not a tensor of real times that run strictly from ``t[0]`` to ``t[-1]``.
    """
    if not isinstance(grid, Tensor) or grid.ndim != 1 or not grid.dtype.is_floating_point or not len(grid):
        tensor = isinstance(grid, Tensor)
        got = f"{grid.dtype} of shape {tuple(grid.shape)}" if tensor else type(grid).__name__
        expected = "a floating tensor (N,) from t[0] to t[-1]"
        raise ConfigError(f"options['grid_constructor'] returned {got}, expected {expected}")
    exact = grid.to(torch.float64)
    values = exact.detach().tolist()
    if values[0] != times.values[0] or values[-1] != times.values[-1]:
        first, last = times.values[0], times.values[-1]
        got = f"from {values[0]} to {values[-1]}"
        raise ConfigError(f"the grid runs {got}, expected {first} to {last} as t does")
    mean = (values[-1] - values[0]) / max(1, len(values) - 1)
    _check_monotone(values, f"the grid of {len(values)} times (steps of {mean:.3g})")
    return exact


def read_step_size(value: Any) -> tuple[float, float]:
    """``(step size, eps of its dtype)`` of a number, a NumPy scalar or a tensor with one element.

    Raises:
        ConfigError: anything but a positive finite real number.
    """
    number, eps = value, 0.0
    if isinstance(value, Tensor) and value.numel() == 1:
        number = value.detach().item()
        eps = torch.finfo(value.dtype).eps if value.dtype.is_floating_point else 0.0
    elif isinstance(value, (np.ndarray, np.generic)) and value.size == 1:
        number = value.item()
        eps = float(np.finfo(value.dtype).eps) if value.dtype.kind == "f" else 0.0
        number = float(number) if value.dtype.kind == "f" else number
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 < number < math.inf:
        raise ConfigError(f"options['step_size'] is {value!r}, expected a positive number")
    return float(number), eps


def count_steps(times: Times, step_size: Any) -> int:
    """The least number of steps of at most ``step_size`` from ``t[0]`` to ``t[-1]``.

    A span that is a whole number of steps up to the rounding of the dtypes of ``t`` and ``step_size`` is
    that number: 0.3 in float32 is three steps of 0.1, although it is a little more than 0.3.
    """
    step, eps = read_step_size(step_size)
    ratio = abs(times.span) / step
    slack = min(times.rounding / step + max(eps, RELATIVE) * ratio, LARGEST_SLACK)
    if not ratio < 2.0**53:
        raise ConfigError(f"options['step_size'] is {step}, which is {ratio:.3g} steps: give a larger one")
    return max(1, math.ceil(ratio - slack))


def uniform_steps(times: Times) -> int:
    """The number of gaps of a uniform ``t``.

    Raises:
        ConfigError: the gaps differ by more than the rounding of the times.
    """
    gaps = [abs(b - a) for a, b in pairwise(times.values)]
    mean = abs(times.span) / len(gaps)
    if max(abs(g - mean) for g in gaps) > min(4 * times.rounding, 0.25 * mean):
        raise ConfigError(
            "t is not uniform: give options={'step_size': h}, and times between grid points are "
            "interpolated; or take one of torchdiffeq's methods ('rk4'), whose steps are the gaps of t"
        )
    return len(gaps)
