"""torchdiffeq's fixed-grid methods under its names: explicit Runge-Kutta steps in plain floating point.

They are not reversible: a step cannot be undone, and autograd stores the graph of every evaluation. They are
here so that ``odeint`` means by ``"rk4"`` what torchdiffeq means by it (its version 0.2.5; written from the
formulas).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, UnsupportedError
from . import tableaus
from ._solution import hermite
from ._times import Times, check_grid, count_steps, read_step_size
from ._tuple_states import check_value, check_values
from .tableaus import Tableau

KUTTA = f"Kutta (1901); {tableaus.HNW}, II.1"
#: torchdiffeq's name -> the step. Its "rk4" is Kutta's 3/8 rule, not the classical method; its "heun2" is
#: the trapezoidal one.
TABLEAUS = {
    "euler": tableaus.EULER,
    "midpoint": tableaus.MIDPOINT,
    "heun2": tableaus.HEUN2,
    "heun3": Tableau(
        "heun3", 3, ((), (1 / 3,), (0.0, 2 / 3)), (1 / 4, 0.0, 3 / 4), (0.0, 1 / 3, 2 / 3),
        f"Heun (1900); {tableaus.HNW}, II.1"
    ),
    "rk4": Tableau(
        "three_eighths", 4, ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0)), (1 / 8, 3 / 8, 3 / 8, 1 / 8),
        (0.0, 1 / 3, 2 / 3, 1.0), f"{KUTTA}, the 3/8 rule",
    ),
}  # fmt: skip
OPTIONS = ("step_size", "grid_constructor", "perturb", "interp")
INTERP = ("linear", "cubic")

#: The parts of a state, of a stage, or of an increment; one part where y0 is a tensor.
Parts = tuple[Tensor, ...]


@dataclass(frozen=True)
class _Field:
    """The caller's function on parts.

    Attributes:
        f: as it was given, ``f(t, y)``, with y a tensor or a tuple.
        single: y is a tensor.
    """

    f: Callable
    single: bool

    def __call__(self, t: Tensor, parts: Parts) -> Parts:
        """The field's value, each part in the dtype that its state is summed in."""
        before = [None if p.is_inference() else p._version for p in parts]
        # A clock of its own, so that a field that writes to it moves no grid point.
        found = self.f(t if t.requires_grad else t.clone(), parts[0] if self.single else parts)
        if before != [None if p.is_inference() else p._version for p in parts]:
            said = "the field changed its argument in place; the step still needs it: let it work on a copy"
            raise UnsupportedError(said)
        values = (found,) if self.single else check_values(found, parts)
        return tuple(self._value(i, value, like) for i, (value, like) in enumerate(zip(values, parts)))

    def _value(self, i: int, value: Any, like: Tensor) -> Tensor:
        if isinstance(value, Tensor) and value.ndim == 0:
            value = value.expand(like.shape)  # a number, the same for every component
        name = "the field's value" if self.single else f"part {i} of the field's value"
        return check_value(value, like, name).to(_summed_in(like.dtype))


def _summed_in(dtype: torch.dtype) -> torch.dtype:
    """Half precision has too few bits for a step size: a step is summed in float32 and rounded once."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def solve(
    method: str, f: Callable, y0: Parts, single: bool, times: Times, options: dict[str, Any], original: Any
) -> Parts:  # fmt: skip
    """The solution at ``times``, (T, *shape) of each part, with a graph where one is wanted.

    Args:
        method: a name of ``TABLEAUS``.
        f: ``f(t, y)``; y is a tensor if ``single``, else a tuple.
        y0: the parts of the start.
        times: where to return it; the first is the start's.
        options: some of ``OPTIONS``.
        original: the caller's function, whose ``callback_step`` is called before each step.

    Raises:
        ConfigError: an option of another kind, or a value that does not fit the state.
        UnsupportedError: the field changed its argument in place.
    """
    interp, perturb = options.get("interp", "linear"), options.get("perturb", False)
    if interp not in INTERP:
        raise ConfigError(f"options['interp'] is {interp!r}, expected one of {', '.join(map(repr, INTERP))}")
    if not isinstance(perturb, bool):
        raise ConfigError(f"options['perturb'] is {perturb!r}, expected True or False")
    exact = times.exact.to(y0[0].device)
    start = y0[0] if single else y0
    grid, own = _grid(f, start, times, exact, options)
    walk = _Walk(TABLEAUS[method], _Field(f, single), perturb, interp, _callback(original, single))
    return walk.run(y0, grid, exact, times, own)


def _grid(f: Callable, y0: Any, times: Times, exact: Tensor, options: dict[str, Any]) -> tuple[Tensor, bool]:
    """The grid in float64, and whether it is another one than the times themselves."""
    step_size, make = options.get("step_size"), options.get("grid_constructor")
    if step_size is not None and make is not None:
        raise ConfigError("options has step_size and grid_constructor, which both place the steps: give one")
    if len(times.values) == 1 or (step_size is None and make is None):
        return exact, False
    if make is not None:
        if not callable(make):
            expected = "a function of (func, y0, t) that returns the grid"
            raise ConfigError(f"options['grid_constructor'] is {make!r}, expected {expected}")
        return check_grid(make(f, y0, times.given), times).to(exact.device), True
    steps = count_steps(times, step_size)
    size: Any = read_step_size(step_size)[0]
    if isinstance(step_size, Tensor) and step_size.requires_grad:
        size = step_size.to(exact).reshape(())
    index = torch.arange(steps, dtype=torch.float64, device=exact.device)
    grid = torch.cat([exact[0] + index * (size if times.span > 0 else -size), exact[-1:]])
    return check_grid(grid, times), True


def _callback(original: Any, single: bool) -> Callable | None:
    """``callback_step(t0, y0, dt)`` of the function, called before each step, as torchdiffeq does."""
    for name in ("callback_accept_step", "callback_reject_step"):
        if hasattr(original, name):
            said = f"the function has {name}, which is never called: every step of a fixed grid is taken"
            warnings.warn(said, stacklevel=5)
    call = getattr(original, "callback_step", None)
    return None if call is None else lambda t, parts, dt: call(t, parts[0] if single else parts, dt)


@dataclass
class _Walk:
    """Steps along a grid, and the values at the times that lie in each."""

    tableau: Tableau
    field: _Field
    perturb: bool
    interp: str
    callback: Callable | None

    def run(self, y: Parts, grid: Tensor, exact: Tensor, times: Times, own: bool) -> Parts:
        """(T, *shape) of each part.

        Args:
            own: the grid is not the times themselves, so that times lie between its points.
        """
        points = grid.detach().tolist()
        wanted = times.values
        sign = 1.0 if times.span > 0 else -1.0
        rows = [y]
        j = 1
        for n, (left, right) in enumerate(pairwise(points)):
            begin = grid[n]
            end = grid[n + 1]
            dt = end - begin
            if self.callback is not None:
                self.callback(begin, y, dt.abs())
            after, first = self.step(begin, end, y)
            if own:
                inside = _Inside(self, begin, end, y, first, after)
                while j < len(wanted) and sign * wanted[j] <= sign * right:
                    rows.append(inside.at(exact[j], wanted[j], left, right))
                    j += 1
            else:
                rows.append(after)
            y = after
        return tuple(torch.stack(column) for column in zip(*rows))

    def step(self, begin: Tensor, end: Tensor, y: Parts) -> tuple[Parts, Parts]:
        """``(y at the end, dt f(begin, y))``. Increments are memory of their own, whatever f returns."""
        dt = end - begin
        sizes = [_like(dt, x) for x in y]
        moved: list[Parts] = []
        for row, c in zip(self.tableau.a, self.tableau.c):
            value = self.field(self._time(begin, end, dt, c), y if not row else _plus(y, row, moved))
            moved.append(tuple(size * k for size, k in zip(sizes, value)))
        return _plus(y, self.tableau.b, moved), moved[0]

    def _time(self, begin: Tensor, end: Tensor, dt: Tensor, c: float) -> Tensor:
        """The time of a stage; with ``perturb`` the ends are moved into the step by one bit."""
        if c == 0.0:
            return _nudged(begin, end) if self.perturb else begin
        if c == 1.0:
            return _nudged(end, begin) if self.perturb else end
        return begin + c * dt


@dataclass
class _Inside:
    """The interpolant of one step."""

    walk: _Walk
    begin: Tensor
    end: Tensor
    y0: Parts
    first: Parts
    y1: Parts
    last: Parts | None = None

    def at(self, t: Tensor, value: float, left: float, right: float) -> Parts:
        """The value at ``t``, which is ``value`` as a float, in the step from ``left`` to ``right``."""
        if value == right and not (t.requires_grad or self.end.requires_grad):
            return self.y1
        theta = (t - self.begin) / (self.end - self.begin)
        if self.walk.interp == "linear":
            return tuple(self._linear(theta, a, b) for a, b in zip(self.y0, self.y1))
        if self.last is None:
            dt = self.end - self.begin
            slopes = self.walk.field(self.end, self.y1)
            self.last = tuple(_like(dt, y) * k for y, k in zip(self.y1, slopes))
        ends = zip(self.y0, self.first, self.y1, self.last)
        return tuple(hermite(_like(theta, a), 1.0, _up(a), p, _up(b), q).to(a.dtype) for a, p, b, q in ends)

    @staticmethod
    def _linear(theta: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """On the line from a to b, counted from b: theta = 1 is b to the bit, and still has its slope."""
        return (_up(b) + _like(theta - 1.0, b) * (_up(b) - _up(a))).to(b.dtype)


def _plus(y: Parts, weights: Sequence[float], moved: Sequence[Parts]) -> Parts:
    """``y + sum_i weights_i moved_i``, summed in order and rounded to the state's dtype once."""
    out = []
    for i, x in enumerate(y):
        total = None
        for weight, increments in zip(weights, moved):
            if weight:
                total = weight * increments[i] if total is None else total + weight * increments[i]
        out.append((_up(x) + total).to(x.dtype))
    return tuple(out)


def _up(x: Tensor) -> Tensor:
    return x.to(_summed_in(x.dtype))


def _like(number: Tensor, x: Tensor) -> Tensor:
    """A number of the clock in the real dtype that ``x`` is summed in, so that it changes no dtype."""
    dtype = _summed_in(x.dtype)
    return number.to(dtype.to_real() if dtype.is_complex else dtype)


def _nudged(t: Tensor, towards: Tensor) -> Tensor:
    """The next float64 from ``t`` towards another time; as a function of ``t`` the identity."""
    with torch.no_grad():
        moved = torch.nextafter(t, towards) - t
    return t + moved
