"""``odeint`` in the shape of torchdiffeq's."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, UnsupportedError
from .integrate import integrate

OPTIONS = ("step_size", "state", "scale", "start", "loop", "progress")


def odeint(func: Callable | Any, y0: Any, t: Tensor, *, method: Any = "midpoint", options: dict[str, Any] | None = None) -> Any:
    """The solution at the times ``t``, with exact gradients in memory that does not grow with the number of steps.

    In the shape of ``torchdiffeq.odeint(func, y0, t, method=..., options=...)``; the methods are revstep's own: its ``"midpoint"`` is
    the two-step rule, not the Runge-Kutta one. (With ``step_size`` h/2 its first two steps are one Runge-Kutta midpoint step of h.)

    Args:
        func: ``func(t, y)``, or what :func:`integrate` takes as a field.
        y0: tensor, or a pair for second-order and separable fields.
        t: (T,) strictly increasing or decreasing; y0 is the state at ``t[0]``. The steps are uniform from ``t[0]`` to ``t[-1]``; times
            between grid points come from a cubic Hermite interpolant.
        method: as ``scheme`` of :func:`integrate`.
        options: ``step_size`` (shortened so that the last step ends at ``t[-1]``; default: the spacing of a uniform ``t``), and
            ``state``, ``scale``, ``start``, ``loop``, ``progress`` as in :func:`integrate`.

    Returns:
        (T, *y0.shape); for a pair y0 a pair of such.

    Raises:
        ConfigError: t is not monotone, an unknown option, or a non-uniform t without ``step_size``.
        UnsupportedError: t requires a gradient and has more than two times.
    """
    options = dict(options or {})
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise ConfigError(f"odeint has no option {', '.join(map(repr, unknown))}, expected some of {', '.join(OPTIONS)}")
    times = torch.as_tensor(t)
    if times.ndim != 1 or len(times) < 2:
        raise ConfigError(f"t has shape {tuple(times.shape)}, expected (T,) with at least two times")
    gaps = times.detach().double().diff()
    if not bool((gaps > 0).all() or (gaps < 0).all()):
        raise ConfigError("t is not strictly increasing or decreasing")
    steps = _steps(times, gaps, options.pop("step_size", None))
    grad = times.requires_grad and torch.is_grad_enabled()
    if grad and len(times) > 2:
        raise UnsupportedError(
            "a gradient with respect to more than two times is not available: integrate(..., h=..., t0=...) differentiates its step size and start"
        )
    first, last = (times[0], times[-1]) if grad else (float(times[0]), float(times[-1]))
    h = (last - first) / steps
    h_value, t0_value = (float(x.detach()) if grad else x for x in (h, first))
    # The last grid point is t0 + steps h, a rounding away from t[-1].
    wanted = [min(max(v, min(t0_value, t0_value + steps * h_value)), max(t0_value, t0_value + steps * h_value)) for v in times.detach().double().tolist()]
    solution = integrate(func, y0, scheme=method, h=h, steps=steps, t0=first, t_eval=wanted, **options)
    return solution.ys if solution.second is None else (solution.ys, solution.second)


def _steps(times: Tensor, gaps: Tensor, step_size: Any) -> int:
    span = abs(float(gaps.sum()))
    if step_size is None:
        spread = float((gaps.abs() - gaps.abs().mean()).abs().max())
        rounding = 4 * torch.finfo(times.dtype if times.dtype.is_floating_point else torch.float64).eps * float(times.detach().abs().max())
        if spread > rounding:
            raise ConfigError("t is not uniform: give options={'step_size': h}; times between grid points are then interpolated")
        return len(times) - 1
    if isinstance(step_size, bool) or not isinstance(step_size, (int, float)) or not 0 < step_size < math.inf:
        raise ConfigError(f"options['step_size'] is {step_size!r}, expected a positive number")
    return max(1, math.ceil(span / step_size - 1e-9))
