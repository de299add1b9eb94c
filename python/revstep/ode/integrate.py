"""``integrate``: one function for every field, method and state format."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import ConfigError
from ..state import StateFormat
from . import methods, runs
from .equations import FIRST, SECOND, as_field
from .interpolate import brackets, hermite
from .problem import Problem, make_grid
from .solution import Solution, Stats

LOOPS = ("auto", "compiled", "python")


def integrate(
    field: Any,
    y0: Any,
    *,
    scheme: Any,
    h: Any,
    steps: int,
    t0: Any = 0.0,
    args: Sequence[Any] = (),
    state: StateFormat | None = None,
    scale: Any = None,
    save_every: int | None = None,
    t_eval: Sequence[float] | None = None,
    start: str | None = None,
    loop: str = "auto",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Solution:
    """Integrate a field over ``steps`` steps of size ``h`` with a method that can be run backwards.

    Equations: y' = f(t, y); q'' = f(t, q) with ``y0 = (q0, v0)``; q' = F(t, p) = dT/dp, p' = G(t, q) = -dV/dq with
    ``y0 = (q0, p0)`` and ``field = (F, G)``. Functions are called ``f(t, x, *args)`` with x in the shape and dtype of y0 (any
    shape; leading axes may be a batch) and return that shape.

    Args:
        field: a function, a pair of functions, a field of :mod:`revstep.ode.fields`, a CompiledField, or one of FirstOrder,
            SecondOrder, Separable, FromEnergies. A function of a NumPy start gets NumPy arrays, of a torch start tensors.
        scheme: a method by name (:func:`revstep.ode.available`), a revstep scheme such as ``Midpoint()`` (its h is set here),
            a Composition, or a Method.
        h: step size in the units of t; negative runs back in time. May be a scalar tensor that requires a gradient; so may t0.
        state: how the slots are held. Default: 64-bit fixed point with 55 bits below the unit ``scale``. ``revstep.Float(torch.float64)``
            for plain floating point (then reversal is algebraic, not exact).
        scale: unit of each component, powers of two: a number, an array or list that broadcasts to the state, or a tuple of
            two of them for the two parts of a pair. Default: per slot, from the largest start value (with ``state`` given: 1).
        save_every: keep every so many steps (the start and the end always); default: those two only.
        t_eval: times to return instead; between grid points by a cubic Hermite interpolant, O(h**4).
        start: of two-step schemes: ``"euler"`` (default) or ``"repeat"``.
        loop: ``"compiled"`` runs in C++ without Python (built-in fields and CompiledField; float64 on the CPU; no gradients),
            ``"python"`` on tensors, ``"auto"`` the first where it can. Which one ran is in ``stats.loop``; both do the same
            micro-steps, their bits differ where the field's own arithmetic does.
        threads: of the compiled loop, over the batch; default ``torch.get_num_threads()``.
        progress: called ``progress(done, steps)`` now and then.

    Returns:
        :class:`Solution`. With gradients on, ``ys`` (and velocities, momenta) are differentiable with respect to y0, h, t0, args
        and parameters, in memory that does not grow with ``steps``. Second derivatives are not available.

    Raises:
        ConfigError: arguments that do not fit together. StateOverflowError: a value left the fixed-point range (its ``layer`` is
        the step). ReconstructionError: in backward, the field did other work than forward. UnsupportedError: a random field.

    Source: docs/theory; Hairer, Lubich, Wanner, Geometric Numerical Integration.
    """
    field = as_field(field, y0)
    h_value, t0_value = _number("h", h), _number("t0", t0)
    method = methods.resolve(scheme, h_value, start)
    method.check(field.equation, steps)
    _check_options(h_value, loop, save_every, t_eval)
    start_values, from_numpy = _tensors(y0)
    parts = start_values if field.equation != FIRST else start_values[0]
    slots = method.begin(field.equation, parts, h)
    grid = make_grid(state, scale, slots, shared=any(m.beta for n in range(min(2, steps)) for m in method.micros(n, field.equation)))
    wanted, saves = _saves(save_every, t_eval, t0_value, h_value, steps)
    problem = Problem(method, field.equation, _functions(field, from_numpy), grid, slots[0].dtype, h_value, t0_value, steps, saves)
    compiled = _choose(loop, field, problem, slots, args, (h, t0))
    if compiled:
        run = runs.Compiled(problem, field, slots, threads, progress)
    else:
        run = runs.OnTensors(problem, field, slots, h, t0, args, progress)
    return _Reader(problem, field, run, (h, t0), args, wanted, from_numpy).solution()


def _number(name: str, value: Any) -> float:
    number = value
    if isinstance(value, Tensor):
        number = value.detach().item() if value.numel() == 1 else math.nan
    if isinstance(number, bool) or not isinstance(number, (int, float, np.floating, np.integer)) or not math.isfinite(number):
        raise ConfigError(f"{name} is {value!r}, expected a finite number or a scalar tensor")
    return float(number)


def _check_options(h: float, loop: str, save_every: int | None, t_eval: Any) -> None:
    if h == 0.0:
        raise ConfigError("h is 0, expected a non-zero step size (negative runs back in time)")
    if loop not in LOOPS:
        raise ConfigError(f"loop is {loop!r}, expected one of {LOOPS}")
    if save_every is not None and (isinstance(save_every, bool) or not isinstance(save_every, int) or save_every < 1):
        raise ConfigError(f"save_every is {save_every!r}, expected a positive integer")
    if save_every is not None and t_eval is not None:
        raise ConfigError("both save_every and t_eval are given: t_eval names the times to return, save_every a regular grid of them")


def _tensors(y0: Any) -> tuple[list[Tensor], bool]:
    """The parts of y0 as float tensors of one shape and dtype, and whether they came as NumPy (or plain numbers)."""
    parts = list(y0) if isinstance(y0, (tuple, list)) and len(y0) == 2 else [y0]
    from_numpy = not any(isinstance(p, Tensor) for p in parts)
    out = []
    for p in parts:
        x = p if isinstance(p, Tensor) else torch.from_numpy(np.array(p, copy=True))
        out.append(x if x.dtype.is_floating_point else x.to(torch.float64))
    a, b = out[0], out[-1]
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
        raise ConfigError(f"the parts of y0 are {tuple(a.shape)} {a.dtype} {a.device} and {tuple(b.shape)} {b.dtype} {b.device}, expected the same")
    if not bool(torch.isfinite(torch.stack([a.detach(), b.detach()])).all()):
        raise ConfigError("y0 has values that are not finite")
    return out, from_numpy


def _functions(field: Any, from_numpy: bool) -> tuple[Callable[..., Tensor], ...]:
    # Built-in fields too: NumPy's square root is correctly rounded, as C++'s is; torch's float64 one is not always.
    if getattr(field, "on_tensors", False):
        return tuple(field.functions())
    return tuple(_on_numpy(f) if from_numpy and not isinstance(f, nn.Module) else f for f in field.functions())


def _on_numpy(f: Callable) -> Callable[..., Tensor]:
    def on_tensors(t: Tensor, x: Tensor, *args: Any) -> Tensor:
        array = x.detach().numpy()
        array.flags.writeable = False  # the step still needs it
        return torch.from_numpy(np.array(f(float(t), array, *args), dtype=array.dtype))

    return on_tensors


def _saves(save_every: int | None, t_eval: Any, t0: float, h: float, steps: int) -> tuple[list[tuple[int, float]], tuple[int, ...]]:
    """What to return, as ``(n, theta)``, and the grid points to keep for it."""
    if t_eval is not None:
        wanted = brackets([float(t) for t in t_eval], t0, h, steps)
        kept = {0, steps} | {n for n, _ in wanted} | {n + 1 for n, theta in wanted if theta}
    else:
        every = steps if save_every is None else save_every
        kept = {0, steps} | set(range(0, steps + 1, max(1, every)))
        wanted = [(n, 0.0) for n in sorted(kept)]
    return wanted, tuple(sorted(kept))


def _choose(loop: str, field: Any, problem: Problem, slots: Sequence[Tensor], args: Sequence[Any], scalars: Sequence[Any]) -> bool:
    """Whether the compiled loop runs. Raises ConfigError when it was asked for and cannot."""
    reasons = []
    if not hasattr(field, "compiled"):
        reasons.append("the field is a Python function (take one of revstep.ode.fields, or wrap a C pointer in revstep.ode.CompiledField)")
    if problem.dtype != torch.float64 or slots[0].device.type != "cpu":
        reasons.append(f"y0 is {problem.dtype} on {slots[0].device} (float64 on the CPU is needed)")
    if problem.grid.format.dtype not in (torch.int64, torch.float64):
        reasons.append(f"the state is {problem.grid.format} (FixedPoint(64, ...) or Float(torch.float64) is needed)")
    if any(isinstance(s, Tensor) and any(n != 1 for n in s.shape[: max(0, s.ndim - getattr(field, "event_dims", 0))]) for s in problem.grid.scales):
        reasons.append("the scale differs over the batch (one unit a component is needed)")
    if tree_leaves(tuple(args)):
        reasons.append("args are given (a compiled field has its parameters in it)")
    if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in (*slots, *scalars)):
        reasons.append("a gradient is asked for")
    if reasons and loop == "compiled":
        raise ConfigError(f"loop='compiled' cannot run this: {'; '.join(reasons)}")
    return loop != "python" and not reasons


class _Reader:
    """From kept slots to a :class:`Solution`: readout, interpolation, and the way back."""

    def __init__(self, problem: Problem, field: Any, run: Any, scalars: tuple, args: Sequence[Any], wanted: Sequence[tuple[int, float]], from_numpy: bool):
        self.problem, self.field, self.run, self.args, self.wanted, self.from_numpy = problem, field, run, args, wanted, from_numpy
        # As tensors only where they are differentiated.
        self.h, self.t0 = (x if isinstance(x, Tensor) and x.requires_grad else _number("", x) for x in scalars)

    def solution(self) -> Solution:
        problem, run = self.problem, self.run
        parts = self._parts(run.kept)
        rows = {n: i for i, n in enumerate(problem.saves)}
        if any(theta for _, theta in self.wanted):
            values = [torch.stack(column) for column in zip(*(self._between(parts, rows, n, theta) for n, theta in self.wanted))]
        else:
            index = [rows[n] for n, _ in self.wanted]
            values = list(parts) if len(index) == len(problem.saves) else [part[index] for part in parts]
        return self._make([problem.time(n, theta) for n, theta in self.wanted], values, run.start, run.final, run.stats(), self.reverse)

    def reverse(self) -> Solution:
        """The run undone from its final slots."""
        kept, at_start, stats = self.run.reversed()
        with self.run.again() as argument:
            parts = self._parts(tuple(argument(k) for k in kept))
        parts = [part.detach() for part in parts]
        order = [self.problem.saves.index(n) for n in reversed([n for n, theta in self.wanted if not theta])]
        times = [self.problem.time(self.problem.saves[i]) for i in order]
        exact = all(torch.equal(a, b) for a, b in zip(at_start, self.run.start))
        return self._make(times, [part[order] for part in parts], self.run.final, at_start, stats, None, exact)

    def _make(
        self, times: Sequence[float], values: Sequence[Tensor], start: Any, final: Any, stats: Stats, reverse: Any, exact: bool | None = None
    ) -> Solution:
        ts: Any = torch.tensor(times, dtype=torch.float64)
        values = list(values)
        if self.from_numpy:
            ts, values = ts.numpy(), [v.detach().numpy() for v in values]
        ys, second = values[0], values[1] if len(values) > 1 else None
        velocities, momenta = (second, None) if self.field.equation == SECOND else (None, second)
        energy, integrals = getattr(self.field, "energy", None), getattr(self.field, "integrals", dict)()
        return Solution(ts, ys, velocities, momenta, stats, start, final, self.field.equation, exact, energy, integrals, reverse)

    def _first(self, t: Any, x: Tensor) -> Tensor:
        value = self.problem.functions[0](self._time(t, x), x, *self.args)
        return value.clone()  # it may return one buffer each time

    @staticmethod
    def _time(t: Any, like: Tensor) -> Tensor:
        return t.to(like.dtype) if isinstance(t, Tensor) else torch.tensor(t, dtype=like.dtype, device=like.device)

    def _parts(self, kept: tuple[Tensor, Tensor]) -> list[Tensor]:
        """(M, ...) of each part of the solution, from the (M, ...) float values of the two slots."""
        problem = self.problem
        if problem.method.period == 1:  # read alike at every step
            return list(problem.method.read(problem.equation, 0, kept, None, self.h, self._first))
        rows = [
            problem.method.read(problem.equation, n, (kept[0][i], kept[1][i]), self.t0 + n * self.h, self.h, self._first) for i, n in enumerate(problem.saves)
        ]
        return [torch.stack(column) for column in zip(*rows)]

    def _between(self, parts: Sequence[Tensor], rows: dict[int, int], n: int, theta: float) -> list[Tensor]:
        if not theta:
            return [part[rows[n]] for part in parts]
        ends = [([part[rows[m]] for part in parts], self.t0 + m * self.h) for m in (n, n + 1)]
        slopes = [self._slopes(values, t) for values, t in ends]
        return [hermite(theta, self.h, ends[0][0][i], slopes[0][i], ends[1][0][i], slopes[1][i]) for i in range(len(parts))]

    def _slopes(self, values: Sequence[Tensor], t: Any) -> list[Tensor]:
        if self.field.equation == FIRST:
            return [self._first(t, values[0])]
        if self.field.equation == SECOND:
            return [values[1], self._first(t, values[0])]
        first = self._first(t, values[1])
        return [first, self.problem.functions[1](self._time(t, values[0]), values[0], *self.args).clone()]
