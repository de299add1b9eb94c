"""``integrate``: one function for every field, method and state format."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .._recurrence.ambient import transformed
from ..errors import ConfigError, StateOverflowError, UnsupportedError
from ..state import StateFormat
from . import _runs, _starts, _times, _units, methods
from ._bits import Bits
from ._compiled_runs import Compiled
from ._equations import FIRST, as_field
from ._pilot import pilot
from ._problem import Problem, scalar_on
from ._reader import Reader
from ._solution import Solution
from ._starts import Start
from ._times import number, whole

LOOPS = ("auto", "compiled", "captured", "python")
ON_FAILURE = ("raise", "drop")


def integrate(
    field: Any,
    y0: Any = None,
    *,
    scheme: Any = None,
    h: Any = None,
    steps: int | None = None,
    t0: Any = 0.0,
    t1: Any = None,
    t_span: tuple[Any, Any] | None = None,
    args: Sequence[Any] = (),
    state: StateFormat | None = None,
    scale: Any = None,
    save_every: int | None = None,
    t_eval: Sequence[float] | Tensor | None = None,
    start: str | Bits | None = None,
    loop: str = "auto",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_failure: str = "raise",
) -> Solution:
    """Integrate a field over ``steps`` steps of size ``h`` with a method that can be run backwards.

    Equations: y' = f(t, y); q'' = f(t, q) with ``y0 = (q0, v0)``; q' = F(t, p) = dT/dp, p' = G(t, q) = -dV/dq
    with ``y0 = (q0, p0)`` and ``field = (F, G)``. Functions are called ``f(t, x, *args)`` with x in the shape
    and dtype of y0 (any shape; leading axes may be a batch) and return that shape. t is a float, for tensors
    a 0-d float64 tensor, whatever the dtype of the state; it stays inside the interval of the run, or the one
    the field declares.

    Args:
        field: a function, a pair of functions, a module, a field of :mod:`revstep.ode.fields`, a
            CompiledField, or one of FirstOrder, SecondOrder, Separable, FromEnergies. A function of a NumPy
            start gets NumPy arrays, of a torch start tensors. A module is called f(t, y), or f(y) where its
            forward takes one argument.
        y0: real or complex: an array, a tensor, a number or a list of numbers; a tuple of two is a pair (q0,
            v0) or (q0, p0). None where ``start`` is the final slots of another run, which hold the values.
        scheme: a method by name (:func:`revstep.ode.available`), a revstep scheme such as ``Midpoint()`` (its
            h is set here), a Composition, or a Method. Default: :func:`revstep.ode.methods.default` of the
            equation; ``stats.method`` says which.
        h: step size in the units of t; negative runs back in time. May be a scalar tensor that requires a
            gradient; so may t0.
        steps: how many steps. Two of h, steps and the end are given; a third has to agree.
        t0: time of the start.
        t1: time of the end.
        t_span: ``(t0, t1)``, instead of both.
        args: further arguments of the field, a tuple.
        state: how the slots are held. Default: 64-bit fixed point with 55 bits below the unit ``scale``.
            ``revstep.Float(torch.float64)`` for plain floating point (then reversal is algebraic, not exact).
        scale: unit of each component, powers of two: a number, an array or list that broadcasts to the state,
            or a tuple of two of them for the two parts of a pair. Default: chosen from the start and from how
            far the field moves it (:mod:`revstep.ode._units`).
        save_every: keep every so many steps (the start and the end always); default: those two only.
        t_eval: times to return instead; between grid points by a cubic Hermite interpolant, O(h**4). A tensor
            of times that requires a gradient gets that of the interpolant, at a grid point the field's value
            there.
        start: of two-step schemes ``"euler"`` (default) or ``"repeat"``; or ``solution.final`` of another
            run, which this one then continues to the bit.
        loop: ``"compiled"`` runs in C++ without Python (built-in fields and CompiledField; float64 on the
            CPU; no gradients), ``"python"`` on tensors, ``"auto"`` the first where it can. ``"captured"``: on
            tensors, where the operators of the field and of its gradient are recorded once and replayed,
            with the bits of ``"python"``; the field's own Python then runs a few times a run. Where a field
            cannot be recorded, ``"python"`` runs, a FallbackWarning says why, and so does
            ``stats.fallback``. Which loop ran is in ``stats.loop``; all do the same micro-steps, the bits of
            ``"compiled"`` differ where the field's own arithmetic does.
        threads: of the compiled loop, over the batch; default ``torch.get_num_threads()``.
        progress: called ``progress(done, steps)`` now and then.
        on_failure: of a batch in which a member leaves its range or becomes NaN: ``"raise"``, or ``"drop"``:
            the member's values are NaN from the start, ``solution.failed`` says at which step it failed, and
            the others are what they are without it.

    Returns:
        :class:`Solution`. With gradients on, ``ys`` (and velocities, momenta) are differentiable with respect
        to y0, h, t0, args and parameters. No trajectory is kept for them: memory does not grow with
        ``steps``, but for the carry bits of methods with \\|alpha\\| < 1, which most methods for y' = f are
        (one or two bits a component and step, ``stats.carry_bytes``). Second derivatives are not available.

    Raises:
        ConfigError: arguments that do not fit together.
        StateOverflowError: a value left the fixed-point range (its ``layer`` is the step).
        ResolutionError: the scale is so large that a component never moved.
        ParasiticModeError: two copies of the solution came apart.
        ReconstructionError: in backward, the field did other work than forward.
        UnsupportedError: a random field; torch.func transforms and forward mode; a gradient through C
            functions.

    Warns:
        ResolutionWarning: the increments of a component have few bits, where another scale would give more.
        FallbackWarning: ``loop="captured"``, and the field or the run cannot be recorded.

    Source: docs/theory; Hairer, Lubich, Wanner, Geometric Numerical Integration.
    """
    args = _arguments(args)
    _refuse_transforms((y0, h, t0, t1, t_span, args))
    before = start if isinstance(start, Bits) else None
    if isinstance(start, tuple) and before is None:
        raise ConfigError(
            "start is a plain tuple, expected solution.final as it is: it knows its step, time and scales"
        )
    form = before.form(y0) if before is not None else _starts.read(y0)
    h, t0, t1 = map(_clock, (h, t0, t1))
    if isinstance(t_span, (tuple, list)):
        t_span = tuple(map(_clock, t_span))  # type: ignore[assignment]
    field = as_field(field, form, args)
    h, steps, t0 = (_times if before is None else before).span(h, steps, t0, t1, t_span)
    h_value, t0_value = number("h", h), number("t0", t0)
    if scheme is None:
        scheme = before.method if before is not None else methods.default(field.equation)
    method = methods.resolve(scheme, h_value, start if before is None else None)
    first = 0 if before is None else before.step
    method.check(field.equation, first + steps)
    if hasattr(field, "check_event") and len(form.shape) >= field.event_dims:
        field.check_event(tuple(form.shape[len(form.shape) - field.event_dims :]))
    if form.complex and not method.rotations:
        raise ConfigError(
            f"y0 is complex, and {method.name} carries a second solution that nothing damps where the field"
            " turns the state: take 'reversible_rk4', or a splitting such as 'kahan_li6'"
        )
    if before is not None:
        before.check(method, field.equation, state, scale)
    _check_options(loop, t_eval, save_every, progress, on_failure)
    every = None if save_every is None else whole("save_every", save_every, 1)
    times = None if t_eval is None else (t_eval if _differentiated(t_eval) else _times.times_of(t_eval))
    wanted, saves = _saves(every, times, t0_value, h_value, first, first + steps)
    functions = tuple(form.function(f, args, getattr(field, "on_tensors", False)) for f in field.functions())
    problem = Problem(
        method, field.equation, functions, None, form.parts[0].dtype, h_value, t0_value, steps, saves, first,
        _interval(field, t0_value, t0_value + first * h_value, t0_value + (first + steps) * h_value),
        getattr(field, "autonomous", False),
    )  # fmt: skip
    slots, grid = _slots(problem, form, before, h, state, scale, args)
    threads = None if threads is None else whole("threads", threads, 1)
    for left in reversed(range(_units.TRIES + 1)):
        problem = problem.on(grid)
        compiled = _choose(loop, field, problem, form, slots, args, (h, t0, times))
        try:
            if compiled:
                run: Any = Compiled(problem, field, slots, threads, progress, before, on_failure)
            else:
                run = _runs.OnTensors(
                    problem, field, slots, h, t0, args, progress, before, on_failure, loop == "captured"
                )
            break
        except StateOverflowError as error:
            grid = (
                _units.again(grid, slots, error.scale)
                if left and grid.chosen and error.scale is not None
                else None
            )
            if grid is None or before is not None:
                raise
    run.judge(args)
    return Reader(problem, field, form, run, (h, t0), args, wanted, times).solution()


def _clock(x: Any) -> Any:
    """A tensor of one element as the float64 scalar that times are computed in; anything else as it is."""
    return x.double().reshape(()) if isinstance(x, Tensor) and x.numel() == 1 else x


def _refuse_transforms(given: Sequence[Any]) -> None:
    if transformed(given):
        raise UnsupportedError(
            "an integration cannot be undone under torch.func transforms (grad, vmap, jvp) or in forward"
            " mode: use torch.autograd.grad"
        )


def _arguments(args: Any) -> tuple[Any, ...]:
    if args is None:
        return ()
    if not isinstance(args, (tuple, list)):
        raise ConfigError(
            f"args is {type(args).__name__}, expected a tuple of the field's further arguments: args=(a,)"
        )
    return tuple(args)


def _check_options(loop: str, t_eval: Any, save_every: Any, progress: Any, on_failure: str) -> None:
    if loop not in LOOPS:
        raise ConfigError(f"loop is {loop!r}, expected one of {LOOPS}")
    if on_failure not in ON_FAILURE:
        raise ConfigError(f"on_failure is {on_failure!r}, expected one of {ON_FAILURE}")
    if progress is not None and not callable(progress):
        raise ConfigError(f"progress is {progress!r}, expected a function progress(done, steps)")
    if save_every is not None and t_eval is not None:
        raise ConfigError(
            "both save_every and t_eval are given: t_eval names the times to return, save_every a regular"
            " grid of them"
        )


def _differentiated(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad and torch.is_grad_enabled()


def _interval(field: Any, t0: float, start: float, end: float) -> tuple[float, float] | None:
    """The times at which the field says it can be asked; None where it says nothing."""
    declared = getattr(field, "interval", None)
    if declared is None:
        return None
    low, high = min(start, end), max(start, end)
    slack = 1e-12 * max(abs(low), abs(high))
    if low < declared[0] - slack or high > declared[1] + slack:
        raise ConfigError(
            f"the run goes from t = {low} to {high}, beyond the field's interval {declared}: shorten it"
        )
    return declared  # rounding of the times does not lead out of it


def _slots(
    problem: Problem, form: Start, before: Bits | None, h: Any, state: Any, scale: Any, args: Sequence[Any]
) -> tuple[tuple[Tensor, Tensor], Any]:
    """The two slots at the start, in floats, and the grid that holds them."""
    if before is not None:
        return before.values(), before.grid
    method, equation = problem.method, problem.equation
    parts = form.parts if equation != FIRST else form.parts[0]
    slots = method.begin(equation, parts, h)
    shared = any(m.beta for n in range(min(2, problem.steps)) for m in method.micros(n, equation))
    ahead = None
    if scale is None and slots[0].numel():
        device = slots[0].device

        def times(u: float) -> Tensor:
            return scalar_on(device, problem.time(0, u))

        both = 0 if equation == FIRST or (shared and equation != FIRST) else None
        ahead = pilot(equation, problem.functions, form.parts, both, times, problem.h, problem.steps, args)
    return slots, _units.make_grid(state, scale, slots, shared, ahead, form.complex, problem.steps)


def _saves(
    every: int | None, times: Any, t0: float, h: float, first: int, last: int
) -> tuple[list[tuple[int, float]], tuple[int, ...]]:
    """What to return, as ``(n, theta)``, and the steps to save for it."""
    if times is not None:
        asked = _times.times_of(times) if isinstance(times, Tensor) else times
        wanted = _times.brackets(asked, t0, h, first, last)
        saves = {first, last} | {n for n, _ in wanted} | {n + 1 for n, theta in wanted if theta}
    else:
        saves = {first, last} | set(range(first, last + 1, every) if every else ())
        wanted = [(n, 0.0) for n in sorted(saves)]
    return wanted, tuple(sorted(saves))


def _choose(
    loop: str,
    field: Any,
    problem: Problem,
    form: Start,
    slots: Sequence[Tensor],
    args: Sequence[Any],
    scalars: Sequence[Any],
) -> bool:
    """Whether the compiled loop runs. Raises ConfigError when it was asked for and cannot."""
    reasons = []
    if not hasattr(field, "compiled"):
        reasons.append(
            "the field is a Python function (take one of revstep.ode.fields, or wrap a C pointer in"
            " revstep.ode.CompiledField)"
        )
    if form.complex:
        reasons.append("y0 is complex")
    if problem.dtype != torch.float64 or slots[0].device.type != "cpu":
        reasons.append(f"y0 is {problem.dtype} on {slots[0].device} (float64 on the CPU is needed)")
    if problem.grid.format.dtype not in (torch.int64, torch.float64):
        reasons.append(
            f"the state is {problem.grid.format} (FixedPoint(64, ...) or Float(torch.float64) is needed)"
        )
    if tree_leaves(tuple(args)):
        reasons.append("args are given (a compiled field has its parameters in it)")
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (*slots, *scalars)):
        reasons.append("a gradient is asked for")
    if reasons and loop == "compiled":
        raise ConfigError(f"loop='compiled' cannot run this: {'; '.join(reasons)}")
    return loop in ("auto", "compiled") and not reasons
