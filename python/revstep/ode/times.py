"""The times that a caller of ``odeint`` gives, and how many steps fit between them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError

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
