"""From the slots that a run saved to a :class:`Solution`: read-out, interpolation, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ._bits import Bits
from ._equations import FIRST, SECOND
from ._problem import Problem
from ._solution import Solution, Stats, hermite
from ._starts import Start
from ._times import number


def _differentiated(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


class Reader:
    """Reads a run.

    Args:
        problem: what was integrated.
        field: of the caller, for its energy and integrals.
        start: the form of y0.
        run: a run of :mod:`revstep.ode._runs`.
        scalars: h and t0 as they were given; tensors where they are differentiated.
        args: of the field.
        wanted: the steps and fractions to return.
        times: the times asked for, floats, or a tensor to differentiate; None: those of the steps.
    """

    def __init__(
        self,
        problem: Problem,
        field: Any,
        start: Start,
        run: Any,
        scalars: tuple[Any, Any],
        args: Sequence[Any],
        wanted: Sequence[tuple[int, float]],
        times: Any,
    ):
        self.problem = problem
        self.field = field
        self.form = start
        self.run = run
        self.args = args
        self.wanted = wanted
        self.times = times
        # As tensors only where they are differentiated.
        self.h, self.t0 = (x if isinstance(x, Tensor) and x.requires_grad else number("", x) for x in scalars)

    def __getstate__(self) -> dict[str, Any]:
        """Without what is made from the field: see :meth:`__setstate__`. A field that cannot be pickled
        raises.
        """
        return {**self.__dict__, "problem": replace(self.problem, functions=())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        on_tensors = getattr(self.field, "on_tensors", False)
        functions = tuple(self.form.function(f, self.args, on_tensors) for f in self.field.functions())
        self.problem = self.run.problem = replace(self.problem, functions=functions)

    def solution(self) -> Solution:
        """The run as it went."""
        run = self.run
        return self._make(
            self.wanted, self._asked(), run.saved, run.start, run.final, run.stats(), self.reverse
        )

    def reverse(self) -> Solution:
        """The run undone from its final slots, at the same times in falling order."""
        run = self.run
        saved, at_start, stats = run.reversed()
        asked = dict(zip(self.wanted, self._asked()))
        order = sorted(asked, reverse=True)
        exact = run.arrived(at_start)
        with run.again() as argument:
            values = tuple(argument(k) for k in saved)
            return self._make(
                order, [asked[w] for w in order], values, run.final, at_start, stats, None, exact
            )

    def _asked(self) -> list[float]:
        """The times to return, as floats: those that were asked for, to the bit."""
        if self.times is None:
            return [self.problem.step_time(n, theta) for n, theta in self.wanted]
        times = self.times
        return [float(t) for t in (times.detach().tolist() if isinstance(times, Tensor) else times)]

    def _make(
        self,
        wanted: Sequence[tuple[int, float]],
        times: Sequence[float],
        saved: tuple[Tensor, Tensor],
        start: tuple[Tensor, Tensor],
        final: tuple[Tensor, Tensor],
        stats: Stats,
        reverse: Any,
        exact: bool | None = None,
    ) -> Solution:
        values = [self.form.outward(v if exact is None else v.detach()) for v in self._values(wanted, saved)]
        ts: Any = torch.tensor(times, dtype=torch.float64)
        if self.form.from_numpy:
            ts, values = ts.numpy(), [v.detach().numpy() for v in values]
        ys, second = values[0], values[1] if len(values) > 1 else None
        velocities, momenta = (second, None) if self.field.equation == SECOND else (None, second)
        problem = self.problem
        first, last = (problem.first, problem.last) if exact is None else (problem.last, problem.first)
        failed = dict(getattr(self.run, "failed", {}))
        bits = (Bits(slots, problem, self.form, n, failed) for slots, n in ((start, first), (final, last)))
        return Solution(
            ts,
            ys,
            velocities,
            momenta,
            stats,
            *bits,
            self.field.equation,
            exact,
            failed,
            _field=self.field,
            _reverse=reverse,
        )

    def _values(self, wanted: Sequence[tuple[int, float]], saved: tuple[Tensor, Tensor]) -> list[Tensor]:
        parts = self._parts(saved)
        rows = {n: i for i, n in enumerate(self.problem.saves)}
        # Times that are given stay where they are while h and t0 move the steps under them.
        moving = torch.is_grad_enabled() and any(map(_differentiated, (self.times, self.h, self.t0)))
        moving = moving and self.times is not None
        if not moving and not any(theta for _, theta in wanted):
            index = [rows[n] for n, _ in wanted]
            return list(parts) if index == list(range(len(rows))) else [part[index] for part in parts]
        thetas = [self._theta(k, n, theta) if moving else theta for k, (n, theta) in enumerate(wanted)]
        found = [self._between(parts, rows, n, theta) for (n, _), theta in zip(wanted, thetas)]
        return [torch.stack(column) for column in zip(*found)] if found else [part[:0] for part in parts]

    def _theta(self, k: int, n: int, theta: float) -> Tensor:
        """The fraction of a step as a function of the times, of h and of t0; at a step exactly 0."""
        time = self.times[k]
        moved = ((time.double() if isinstance(time, Tensor) else time) - self.t0) / self.h - n
        return moved - moved.detach() + theta

    def _between(self, parts: Sequence[Tensor], rows: dict[int, int], n: int, theta: Any) -> list[Tensor]:
        if not isinstance(theta, Tensor) and not theta:
            return [part[rows[n]] for part in parts]
        # The time of a step that moves: the derivative there is the field.
        if isinstance(theta, Tensor) and not float(theta.detach()):
            here = [part[rows[n]] for part in parts]
            with torch.no_grad():
                slopes = self._slopes(here, self.t0 + n * self.h)
            return [x + (theta * self.h).to(x.dtype) * slope for x, slope in zip(here, slopes)]
        ends = [([part[rows[m]] for part in parts], self.t0 + m * self.h) for m in (n, n + 1)]
        slopes = [self._slopes(values, t) for values, t in ends]
        if isinstance(theta, Tensor):
            theta = theta.to(parts[0].dtype)
        h = self._step(parts[0].dtype)
        return [hermite(theta, h, *four) for four in zip(ends[0][0], slopes[0], ends[1][0], slopes[1])]

    def _slopes(self, values: Sequence[Tensor], t: Any) -> list[Tensor]:
        if self.field.equation == FIRST:
            return [self._first(t, values[0])]
        if self.field.equation == SECOND:
            return [values[1], self._first(t, values[0])]
        second = self.problem.functions[1](self._time(t, values[0]), values[0], *self.args).clone()
        return [self._first(t, values[1]), second]

    def _first(self, t: Any, x: Tensor) -> Tensor:
        # A field may use its buffer again.
        return self.problem.functions[0](self._time(t, x), x, *self.args).clone()

    def _step(self, dtype: torch.dtype) -> Any:
        """h in a state's type: as a float64 scalar it would make one of a state of one number."""
        return self.h.to(dtype) if isinstance(self.h, Tensor) else self.h

    def _time(self, t: Any, like: Tensor) -> Tensor:
        """In the field's interval, which rounding could lead out of."""
        interval = self.problem.interval
        if isinstance(t, Tensor):
            return t if interval is None else t.clamp(*interval)
        if interval is not None:
            t = min(max(t, interval[0]), interval[1])
        return torch.tensor(t, dtype=torch.float64, device=like.device)

    def _parts(self, saved: tuple[Tensor, Tensor]) -> list[Tensor]:
        """(M, ...) of each part of the solution, from the (M, ...) float values of the two slots."""
        problem = self.problem
        method, saves, h = problem.method, problem.saves, self._step(saved[0].dtype)
        if method.period == 1:  # read alike at every step
            return list(method.read(problem.equation, 0, saved, None, h, self._first))
        rows = []
        for i, n in enumerate(saves):
            slots = (saved[0][i], saved[1][i])
            rows.append(method.read(problem.equation, n, slots, self.t0 + n * self.h, h, self._first))
        return [torch.stack(column) for column in zip(*rows)]
