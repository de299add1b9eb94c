"""A run in the compiled loop: the same micro-steps in C++ on (batch, dim) slots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..errors import StateOverflowError
from ..state._places import unravel
from . import _compiled, _records, _watch
from ._bits import Bits
from ._overflow import Moment, overflow
from ._problem import Problem
from ._records import Failures
from ._runs import Run, Slots, encode
from ._solution import Stats
from ._watch import Watch


class Compiled(Run):
    """The same micro-steps in C++ on (batch, dim) slots."""

    loop = "compiled"

    def __init__(
        self,
        problem: Problem,
        field: Any,
        slots: Slots,
        threads: int | None,
        progress: Callable[[int, int], None] | None,
        before: Bits | None = None,
        on_failure: str = "raise",
    ):
        self.problem = problem
        self.native = field.compiled()
        self.threads = threads
        self.shape = slots[0].shape
        self.batch, self.dim = _compiled.layout(field, self.shape)
        self.event_dims = field.event_dims
        grid = problem.grid
        self.start = encode(problem, slots) if before is None else before.slots()
        self.away = None if before is not None else _watch.rounded_away(problem, slots, self.start)
        self.frac_bits = self._frac_bits() if grid.format.exact else None
        # Step 0 may be a start of its own.
        self.regular = (max(1, problem.regular[0]), max(1, problem.regular[1]))
        bits = self._carry_bits() if grid.format.exact else 0
        self.carries = _compiled.Carries(self.batch, bits)
        self.failures = Failures(self.batch) if on_failure == "drop" else None
        work = self._work(self.start)
        self.sizes = (
            _watch.sizes(problem, self.start, self.event_dims).reshape(self.batch)
            if self.seen_copies
            else None
        )
        self.seen = _compiled.Watch(self.batch, self.dim, copies=problem.method.copies(problem.equation))
        ran = self._run(
            work, problem.first, problem.saves[1:], False, self._watching(work, progress), self.seen
        )
        self.saved = self._values(self.start, ran)
        self.final = self._states(work)
        self._stats_of = ran
        self.watch = self._watch(work)
        self.watch.at_the_end(problem, self.final)

    def __getstate__(self) -> dict[str, Any]:
        """Without the problem, which who holds the run puts back."""
        return {k: v for k, v in self.__dict__.items() if k != "problem"}

    def _carry_bits(self) -> int:
        p = self.problem
        return _records.carry_bits(p.micros, p.method.period, self.dim, p.steps, p.first, self.regular)

    def _watching(
        self, work: Slots, progress: Callable[[int, int], None] | None
    ) -> Callable[[int, int], None] | None:
        """What is called between chunks: stops a run whose copies have come apart."""
        limit = self.problem.method.apart_limit
        if not self.seen_copies or limit is None:
            return progress
        at_most = limit * self.sizes  # a state that has grown since allows more

        def between(done: int, steps: int) -> None:
            if bool((self.seen.apart > at_most).any()):
                self._watch(work).check_copies(self.problem)
            if progress is not None:
                progress(done, steps)

        return between

    @property
    def seen_copies(self) -> bool:
        """The method keeps two copies of y."""
        return self.problem.method.copies(self.problem.equation)

    def _watch(self, work: Slots) -> Watch:
        """What the loop recorded, in the shape of the slots; ``work``: where they are now."""
        seen = self.seen
        problem = self.problem
        found = Watch(*(tuple(x.reshape(self.shape) for x in pair) for pair in (seen.zero, seen.high)))
        found.increments = _watch.looks(problem.first, problem.last) * self._moves()
        if self.seen_copies:
            found.sizes = self.sizes
            found.grow(problem.grid.view(i, s, torch.float64) for i, s in enumerate(self._states(work)))
            found.far(seen.apart, seen.apart_at)
        return found

    def _moves(self) -> int:
        """Increments of a step."""
        micros = self.problem.micros(max(1, self.problem.first))
        return sum(m.gamma_coef != 0.0 for m in micros) * self.batch * self.dim

    @property
    def failed(self) -> dict[tuple[int, ...], int]:
        """The step at which each member failed that did."""
        if self.failures is None:
            return {}
        lead = self.shape[: len(self.shape) - self.event_dims]
        bad = self.failures.step.ge(0).nonzero().flatten().tolist()
        return {unravel(i, lead): int(self.failures.step[i]) for i in bad}

    def stats(self) -> Stats:
        return self._summary(self._stats_of, self.carries.nbytes, self.watch)

    def reversed(self) -> tuple[Slots, Slots, Stats]:
        """``(values at the saves, slots at the start, stats)`` of the way back."""
        problem = self.problem
        work = self._work(self.final)
        self.carries.at = self.carries.bits
        ran = self._run(work, problem.last, problem.saves[-2::-1], True, None)
        values = self._values(self.final, ran)
        return tuple(v.flip(0) for v in values), self._states(work), self._summary(ran, 0)  # type: ignore[return-value]

    def arrived(self, at_start: Slots) -> bool:
        if self.failures is None:
            return super().arrived(at_start)
        well = self.failures.step < 0
        pairs = zip(self._rows(at_start), self._rows(self.start))
        return all(torch.equal(a[well], b[well]) for a, b in pairs)

    def _rows(self, slots: Slots) -> list[Tensor]:
        return [s.reshape(self.batch, self.dim) for s in slots]

    def _run(
        self,
        work: Slots,
        position: int,
        saves: Sequence[int],
        undo: bool,
        progress: Callable[[int, int], None] | None,
        seen: _compiled.Watch | None = None,
    ) -> _compiled.Ran:
        p = self.problem
        ran = _compiled.run(
            self.native,
            p.micros,
            work,
            h=p.h,
            steps=p.steps,
            period=p.method.period,
            t0=p.t0,
            position=position,
            undo=undo,
            frac_bits=self.frac_bits,
            tableau=p.method.tableau,
            saves=saves,
            carries=self.carries,
            threads=self.threads,
            progress=progress,
            watch=seen,
            regular=self.regular,
            interval=p.limits,
            keep_going=self.failures or False,
        )
        if ran.bad_step >= 0:
            raise self._overflow(work, ran, undo)
        return ran

    def _overflow(self, work: Slots, ran: _compiled.Ran, undo: bool) -> StateOverflowError:
        """The error of a run that ended early: the slots are those of the last micro-step that was right."""
        lead = self.shape[: len(self.shape) - self.event_dims]
        event = self.shape[len(lead) :]
        slots = tuple(w[ran.bad_system].reshape(*(1 for _ in lead), *event) for w in work)
        stats = ops.Stats(0, 1, self._in_units(ran.largest), -1)
        system = unravel(ran.bad_system, lead)
        return overflow(self._of_one(system), Moment(ran.bad_step, None, slots, system, undo), stats)

    def _of_one(self, system: tuple[int, ...]) -> Problem:
        """The problem with the units of one system, as a batch of one."""
        grid = self.problem.grid
        lead = len(self.shape) - self.event_dims
        scales = []
        for scale in grid.scales:
            if isinstance(scale, Tensor):
                full = scale.expand(self.shape)[system]
                scale = full.reshape(*(1 for _ in range(lead)), *full.shape)
            scales.append(scale)
        return replace(self.problem, grid=replace(grid, scales=tuple(scales)))

    def _frac_bits(self) -> Slots:
        """Of both slots, one a component where the systems agree, else one a component of every system.

        X 2**-F scale is X 2**-(F - log2 scale).
        """
        scales, frac_bits = self.problem.grid.scales, self.problem.grid.format.frac_bits
        if all(isinstance(s, float) for s in scales):
            bits = (frac_bits - round(math.log2(s)) for s in scales)
            return tuple(torch.full((self.dim,), b, dtype=torch.int32) for b in bits)  # type: ignore[return-value]
        rows = []
        for scale in scales:
            full = (
                torch.as_tensor(scale, dtype=torch.float64).expand(self.shape).reshape(self.batch, self.dim)
            )
            exponent = torch.frexp(full)[1] - 1
            rows.append((frac_bits - exponent).to(torch.int32))
        if all(bool((r == r[:1]).all()) for r in rows) and self.batch:
            rows = [r[0].contiguous() for r in rows]
        return rows[0], rows[1]

    def _in_units(self, largest: float) -> float:
        fmt = self.problem.grid.format
        return largest * 2.0**-fmt.frac_bits if fmt.exact else largest

    def _work(self, slots: Slots) -> Slots:
        return tuple(s.clone().reshape(self.batch, self.dim).contiguous() for s in slots)  # type: ignore[return-value]

    def _states(self, work: Slots) -> Slots:
        return tuple(w.reshape(self.shape) for w in work)  # type: ignore[return-value]

    def _values(self, first: Slots, ran: _compiled.Ran) -> Slots:
        """Float values of the slots a run began with and of those it saved, (M, ...) each."""
        saved = (torch.cat([a[None], k.reshape(k.shape[0], *self.shape)]) for a, k in zip(first, ran.saved))
        values = tuple(self.problem.grid.view(i, states, torch.float64) for i, states in enumerate(saved))
        for index in self.failed:
            for v in values:
                v[(slice(None), *index)] = math.nan
        return values  # type: ignore[return-value]

    def _summary(self, ran: _compiled.Ran, carry_bytes: int, seen: Watch | None = None) -> Stats:
        return self._stats(self.problem, ran.evaluations, self._in_units(ran.largest), carry_bytes, 0, seen)
