"""``odeint`` as torchdiffeq has it: its fixed-grid methods, and revstep's under names of their own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from . import _fixed_grid, _starts, methods
from ._equations import FIRST, FirstOrder, as_field
from ._integrate import integrate
from ._times import Times, count_steps, read_times, uniform_steps
from ._tuple_states import Flat, check_part, check_parts
from .methods.twostep import TwoStep

OPTIONS = ("step_size", "state", "scale", "start", "loop", "progress")

#: torchdiffeq's other methods, and what to take here.
_STEPS = "chooses its steps in torchdiffeq; here"
_SEVERAL = "is a multistep method, which is not here;"
ELSEWHERE = {
    "dopri5": f"{_STEPS} 'reversible_dopri5' takes the same stages at a fixed step_size",
    "dopri8": f"{_STEPS} 'kahan_li8' has order 8 at a fixed step_size",
    "bosh3": f"{_STEPS} 'reversible_bosh3' takes the same stages at a fixed step_size",
    "fehlberg2": f"{_STEPS} 'heun2' and 'reversible_heun2' have order 2 at a fixed step_size",
    "adaptive_heun": f"{_STEPS} 'heun2' is its step at a fixed step_size",
    "explicit_adams": f"{_SEVERAL} 'two_step_midpoint' needs one evaluation a step",
    "implicit_adams": f"{_SEVERAL} 'reversible_dopri5' has order 5",
    "fixed_adams": f"{_SEVERAL} 'reversible_dopri5' has order 5",
    "scipy_solver": "calls scipy, without gradients; here 'kahan_li6' has order 6 at a fixed step_size",
}


def odeint(
    func: Callable[..., Any] | Any, y0: Any, t: Tensor, *, method: Any = None,
    options: Mapping[str, Any] | None = None, rtol: Any = None, atol: Any = None, event_fn: Any = None,
) -> Any:  # fmt: skip
    """The solution of y' = func(t, y), y(t[0]) = y0, at the times ``t``.

    Two families of methods. **torchdiffeq's** fixed-grid names ``"euler"``, ``"midpoint"``, ``"heun2"``,
    ``"heun3"`` and ``"rk4"`` (the 3/8 rule) mean what they mean in torchdiffeq 0.2.5: explicit Runge-Kutta
    steps in plain floating point. They are *not reversible*: nothing is undone, and autograd stores every
    evaluation. **revstep's** own methods (:func:`revstep.ode.available`; the two-step rule, ``"midpoint"``
    there, is ``"two_step_midpoint"`` here) run through :func:`integrate`: uniform steps, exact reversal,
    gradients without a stored trajectory (what is kept: :func:`integrate`).

    Args:
        func: ``func(t, y)``, or for revstep's methods what :func:`integrate` takes as a field. t is a
            float64 tensor without axes, whatever the dtype of the state: write ``t.to(y.dtype)`` where you
            concatenate it with y.
        y0: a tensor. A tuple of tensors of any shapes is a tuple state for torchdiffeq's names, with func
            from tuples to tuples; for revstep's methods say what it is: ``FirstOrder(func)`` with a tuple of
            parts of one dtype, ``SecondOrder(func)`` or ``Separable(F, G)`` with a pair.
        t: (T,) finite, strictly increasing or decreasing, of any real dtype; y0 is the state at ``t[0]``.
        method: a name of either family; a scheme, Composition or Method of revstep's. Default: revstep's for
            the equation.
        options: for torchdiffeq's names ``step_size`` (a grid from ``t[0]``, its last step shortened),
            ``grid_constructor`` (called with func, y0 and t as given here), ``perturb`` and ``interp``
            (``"linear"``, which has an error of h**2 at times between grid points whatever the method, or
            ``"cubic"``); without either of the first two the gaps of t are the steps. For
            revstep's ``step_size`` (shortened so that equal steps end at ``t[-1]``; default: the spacing of
            a uniform t, of the two-step rule half of it), ``state``, ``scale``, ``start``, ``loop``,
            ``progress`` as in :func:`integrate`; times between grid points come from a cubic Hermite
            interpolant. The two-step rule takes an even number of steps, since only every second one has its
            order after the one-step start.
        rtol: refused: the steps are fixed.
        atol: refused as well.
        event_fn: refused: the end of a solution is ``t[-1]``.

    Returns:
        (T, *y0.shape); of a tuple y0 a tuple of such. Differentiable with respect to y0, every time of t,
        and what func depends on. A time that is a grid point has the derivative of the interpolant there
        too; torchdiffeq gives 0 where ``step_size`` and linear interpolation hit a time to the last bit.

    Raises:
        ConfigError: arguments that do not fit together, an unknown method or option, or a non-uniform t
            without ``step_size`` for a method of revstep's. What :func:`integrate` raises.
    """
    if rtol is not None or atol is not None:
        given = " and ".join(name for name, value in (("rtol", rtol), ("atol", atol)) if value is not None)
        todo = "leave it out; options={'step_size': h} sets the accuracy"
        raise ConfigError(f"{given} given, but the steps are fixed: {todo}")
    if event_fn is not None:
        raise ConfigError("event_fn is given, but a solution ends at t[-1]: look for the event in its values")
    times = read_times(t)
    options = _check_options(options)
    if isinstance(method, str) and method in _fixed_grid.TABLEAUS:
        return _on_fixed_grid(func, y0, times, method, options)
    if isinstance(method, str) and method not in (*methods.available(), "two_step_midpoint"):
        raise ConfigError(_unknown(method))
    return _reversible(func, y0, times, method, options)


def odeint_adjoint(
    func: Callable[..., Any] | Any, y0: Any, t: Tensor, *, method: Any = None,
    options: Mapping[str, Any] | None = None, rtol: Any = None, atol: Any = None, event_fn: Any = None,
    adjoint_params: Iterable[Tensor] | None = None, adjoint_rtol: Any = None, adjoint_atol: Any = None,
    adjoint_method: Any = None, adjoint_options: Any = None,
) -> Any:  # fmt: skip
    """:func:`odeint` under the name that torchdiffeq gives to gradients in little memory.

    torchdiffeq solves a second equation backwards, whose gradients are near those of the steps. Here nothing
    of the kind is needed: with revstep's methods :func:`odeint` already differentiates the steps themselves,
    and keeps a few bits of each at most. With torchdiffeq's names the gradients are those of the
    steps too, but autograd stores them all.

    Args:
        func: as in :func:`odeint`, like the next seven.
        y0: the state at ``t[0]``.
        t: the times.
        method: by name.
        options: of the method.
        rtol: refused.
        atol: refused.
        event_fn: refused.
        adjoint_params: accepted, and differentiated where they act; so is everything else that acts, listed
            or not.
        adjoint_rtol: refused: there is no second equation to solve.
        adjoint_atol: refused.
        adjoint_method: refused.
        adjoint_options: refused.

    Returns:
        As :func:`odeint`.

    Raises:
        ConfigError: as :func:`odeint`; an ``adjoint_`` argument; ``adjoint_params`` that are no tensors.
    """
    refused = {
        "adjoint_rtol": adjoint_rtol, "adjoint_atol": adjoint_atol,
        "adjoint_method": adjoint_method, "adjoint_options": adjoint_options,
    }  # fmt: skip
    given = [name for name, value in refused.items() if value is not None]
    if given:
        why = "no second equation is solved here: backward differentiates the steps. Leave it out"
        raise ConfigError(f"{', '.join(given)} given, but {why}")
    if adjoint_params is not None:
        listed = [adjoint_params] if isinstance(adjoint_params, Tensor) else list(adjoint_params)
        wrong = [type(p).__name__ for p in listed if not isinstance(p, Tensor)]
        if wrong:
            raise ConfigError(f"adjoint_params has {', '.join(wrong)}, expected tensors")
    return odeint(func, y0, t, method=method, options=options, rtol=rtol, atol=atol, event_fn=event_fn)


def _unknown(method: str) -> str:
    if method in ELSEWHERE:
        return f"{method} {ELSEWHERE[method]}; or 'rk4', torchdiffeq's step of order 4"
    ours = ", ".join(name for name in methods.available() if name not in _fixed_grid.TABLEAUS)
    theirs = ", ".join(_fixed_grid.TABLEAUS)
    expected = f"one of torchdiffeq's {theirs}, or of revstep's two_step_midpoint, {ours}"
    return f"unknown method {method!r}, expected {expected}"


def _check_options(options: Any) -> dict[str, Any]:
    if options is not None and not isinstance(options, Mapping):
        raise ConfigError(f"options is {type(options).__name__}, expected a dictionary: {{'step_size': 0.1}}")
    options = dict(options or {})
    known = dict.fromkeys((*_fixed_grid.OPTIONS, *OPTIONS))
    unknown = [name for name in options if name not in known]
    if unknown:
        names = ", ".join(map(repr, unknown))
        raise ConfigError(f"odeint has no option {names}, expected some of {', '.join(known)}")
    return options


# ---- torchdiffeq's names -------------------------------------------------------------------------------


def _on_fixed_grid(func: Any, y0: Any, times: Times, method: str, options: dict[str, Any]) -> Any:
    unused = [name for name in options if name not in _fixed_grid.OPTIONS]
    if unused:
        names = ", ".join(map(repr, unused))
        said = f"{names} means nothing to {method!r}, an explicit Runge-Kutta method, and is not used"
        warnings.warn(said, stacklevel=3)
    single = not isinstance(y0, tuple)
    if single:
        check_part(y0, "y0")
    parts = (y0,) if single else check_parts(y0)
    devices = sorted({str(p.device) for p in parts})
    if len(devices) > 1:
        raise ConfigError(f"the parts of y0 are on {', '.join(devices)}, expected one device")
    equation = getattr(func, "equation", FIRST) if callable(getattr(func, "functions", None)) else FIRST
    if equation != FIRST or _is_pair(func):
        raise ConfigError(
            f"{method!r} integrates y' = f(t, y): give f, with a tuple y0 for several parts; or take a "
            "method for this equation, such as 'verlet' or 'kahan_li6'"
        )
    (f,) = as_field(func, _starts.Start(parts, False, False, parts[0].is_complex())).functions()
    taken = {name: options[name] for name in _fixed_grid.OPTIONS if options.get(name) is not None}
    found = _fixed_grid.solve(method, f, parts, single, times, taken, func)
    return found[0] if single else found


def _is_pair(func: Any) -> bool:
    return isinstance(func, (tuple, list, nn.ModuleList))


# ---- revstep's methods -------------------------------------------------------------------------------


def _reversible(func: Any, y0: Any, times: Times, method: Any, options: dict[str, Any]) -> Any:
    theirs = [name for name in options if name in _fixed_grid.OPTIONS and name not in OPTIONS]
    if theirs:
        names = ", ".join(map(repr, theirs))
        theirs = f"torchdiffeq's methods ({', '.join(_fixed_grid.TABLEAUS)})"
        raise ConfigError(f"{names} belongs to {theirs}; others have uniform steps: leave it out")
    for name in ("callback_step", "callback_accept_step", "callback_reject_step"):
        if hasattr(func, name):
            said = f"the function has {name}, which only torchdiffeq's methods call"
            raise ConfigError(f"{said}: use options={{'progress': ...}}, or one of those")
    flat = None
    if isinstance(y0, tuple):
        func, y0, flat = _tuple_start(func, y0)
        if flat is not None and "scale" in options:
            options["scale"] = flat.scale(options["scale"])
    field = as_field(func, _starts.read(y0))
    method = methods.default(field.equation) if method is None else method
    steps = _count(times, options.pop("step_size", None), method, field.equation, options.get("start"))
    parts = y0 if isinstance(y0, tuple) else (y0,)
    if times.wants_gradient and not any(isinstance(part, Tensor) for part in parts):
        raise ConfigError("t requires a gradient, but y0 is no tensor: start from tensors, or detach t")
    solution = _integrate(field, y0, times, method, steps, options)
    if flat is not None:
        return flat.unpack(solution.ys)
    return solution.ys if solution.second is None else (solution.ys, solution.second)


def _tuple_start(func: Any, y0: tuple) -> tuple[Any, Any, Flat | None]:
    """What a tuple start means: a pair where the equation has one, parts of one state for FirstOrder."""
    if hasattr(func, "equation") and callable(getattr(func, "functions", None)):
        if func.equation != FIRST:
            return func, y0, None
        flat = Flat(check_parts(y0))
        (f,) = func.functions()
        return FirstOrder(flat.field(f)), flat.pack(y0), flat
    if _is_pair(func):
        return func, y0, None
    raise ConfigError(
        f"y0 is a tuple of {len(y0)}, which has two readings: torchdiffeq's y' = func(t, (a, b, ...)), and "
        "revstep's q'' = func(t, q) with (q0, v0). Say which: FirstOrder(func) with a tuple state, "
        "SecondOrder(func) or Separable(F, G) with a pair, or one of torchdiffeq's methods "
        f"({', '.join(_fixed_grid.TABLEAUS)})"
    )


def _count(times: Times, step_size: Any, method: Any, equation: str, start: Any) -> int:
    """How many steps from the first to the last time."""
    if len(times.values) == 1:
        return 0
    if isinstance(step_size, Tensor) and step_size.requires_grad:
        raise ConfigError("options['step_size'] requires a gradient: integrate(..., h=...) differentiates h")
    steps = uniform_steps(times) if step_size is None else count_steps(times, step_size)
    if not _starts_lower(method, equation, start):
        return steps
    return 2 * steps if step_size is None else steps + steps % 2


def _starts_lower(method: Any, equation: str, start: Any) -> bool:
    """Whether the first step is a start of a lower order, which only the second step makes up for."""
    h = getattr(method, "h", 1.0)
    resolved = methods.resolve(method, h if isinstance(h, (int, float)) else 1.0, start)
    if not isinstance(resolved, TwoStep) or equation != FIRST or FIRST not in resolved.equations:
        return False
    return resolved.start == "euler" and resolved.claims(FIRST).order > 1


def _integrate(field: Any, y0: Any, times: Times, method: Any, steps: int, options: dict[str, Any]) -> Any:
    grad = times.wants_gradient
    first: Any = times.exact[0] if grad else times.values[0]
    h: Any = 1.0
    if steps:
        h = (times.exact[-1] - times.exact[0]) / steps if grad else times.span / steps
    wanted: Any = _at_steps(times, steps)
    if grad and len(wanted) > 2:  # the ends act through t0 and h, times between by where it is read
        wanted = torch.tensor(wanted, dtype=torch.float64) + (times.exact - times.exact.detach()).cpu()
    return integrate(field, y0, scheme=method, h=h, steps=steps, t0=first, t_eval=wanted, **options)


def _at_steps(times: Times, steps: int) -> list[float]:
    """The times, those exchanged for a step's that are one up to the rounding of their dtype."""
    if not steps:
        return times.values
    t0 = times.values[0]
    h = times.span / steps
    last = t0 + steps * h  # a rounding away from t[-1]
    found = []
    for t in times.values:
        n = round((t - t0) / h)
        nearest = t0 + n * h
        near = abs(t - nearest) <= min(2 * times.rounding, 1e-3 * abs(h))
        found.append(nearest if near else min(max(t, min(t0, last)), max(t0, last)))
    return found
