"""The two ways to take the steps of a problem: on tensors, and in the compiled loop. Both leave the same things behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .. import ops
from ..errors import StateOverflowError
from ..state.places import unravel
from . import compiled, gradient
from .loop import Walker
from .methods.base import IDENTITY
from .overflow import Moment, overflow
from .problem import Problem
from .solution import Stats

Slots = tuple[Tensor, Tensor]


class _Run:
    """What a run leaves behind.

    Attributes:
        kept: float values of the two slots at the problem's saves, (M, ...) each.
        start, final: the slots in the state format.
    """

    loop: str
    kept: Slots
    start: Slots
    final: Slots

    def _stats(self, problem: Problem, evaluations: int, largest: float, carry_bytes: int, bytes_saved: int = 0) -> Stats:
        fmt = problem.grid.format
        headroom = fmt.limit / largest if fmt.exact and largest else float("inf")
        return Stats(problem.method.name, str(fmt), self.loop, problem.h, problem.steps, evaluations, headroom, carry_bytes, bytes_saved)


class OnTensors(_Run):
    """Micro-steps on tensors; with a graph where a gradient is wanted."""

    loop = "python"

    def __init__(self, problem: Problem, field: Any, slots: Slots, h: Any, t0: Any, args: Sequence[Any], progress: Callable[[int, int], None] | None):
        self.problem, self.args = problem, args
        self.start = encode(problem, slots)
        self.job = None
        if torch.is_grad_enabled() and self._wants_grad(field, slots, (h, t0), args):
            modules = [*field.functions(), field]
            kept0, kept1, self.walker, self.job = gradient.differentiable(problem, self.start, slots, h, t0, args, modules, progress=progress)
            self.kept = kept0, kept1
        else:
            self.walker = Walker(problem, self.start, args)
            with torch.no_grad():
                self.kept = _walk(self.walker, problem.saves, progress)
        self.final = tuple(self.walker.slots)  # type: ignore[assignment]

    def _wants_grad(self, field: Any, slots: Slots, scalars: Sequence[Any], args: Sequence[Any]) -> bool:
        if any(isinstance(x, Tensor) and x.requires_grad for x in (*slots, *scalars, *tree_leaves(tuple(args)))):
            return True
        if any(isinstance(f, nn.Module) and any(p.requires_grad for p in f.parameters()) for f in (*field.functions(), field)):
            return True
        walker = Walker(self.problem, self.start, args)  # a function may close over leaf tensors: ask it
        micros = [m for m in self.problem.micros(0) if m.field != IDENTITY]
        return any(self.problem.phi(m, walker.view(1 - m.slot), walker.time(m, 0), self.problem.h, args).requires_grad for m in micros[:2])

    def stats(self) -> Stats:
        w = self.walker
        carry_bytes = sum(c.numel() * c.element_size() for c in w.carries)
        return self._stats(self.problem, w.evaluations, w.largest, carry_bytes, self.job.bytes_saved if self.job else 0)

    @torch.no_grad()
    def reversed(self) -> tuple[Slots, Slots, Stats]:
        """``(values at the saves, slots at the start, stats)`` of the way back."""
        walker = Walker(self.problem, self.final, self.args, self.problem.steps, self.walker.carries)
        kept = [(walker.view(0), walker.view(1))]
        for save in reversed(self.problem.saves[:-1]):
            while walker.n > save:
                walker.back()
            kept.append((walker.view(0), walker.view(1)))
        walker.look()
        values = torch.stack([a for a, _ in reversed(kept)]), torch.stack([b for _, b in reversed(kept)])
        return values, tuple(walker.slots), self._stats(self.problem, walker.evaluations, walker.largest, 0)  # type: ignore[return-value]


class Compiled(_Run):
    """The same micro-steps in C++ on (batch, dim) slots."""

    loop = "compiled"

    def __init__(self, problem: Problem, field: Any, slots: Slots, threads: int | None, progress: Callable[[int, int], None] | None):
        self.problem, self.native, self.threads = problem, field.compiled(), threads
        self.shape = slots[0].shape
        self.batch, self.dim = compiled.layout(field, self.shape)
        self.event_dims = field.event_dims
        grid = problem.grid
        self.start = encode(problem, slots)
        self.frac_bits = self._frac_bits() if grid.format.exact else None
        bits = compiled.carry_bits(problem.micros, problem.method.period, self.dim, problem.steps) if grid.format.exact else 0
        self.carries = compiled.Carries(self.batch, bits)
        work = self._work(self.start)
        ran = self._run(work, 0, problem.saves[1:], False, progress)
        self.kept, self.final = self._values(self.start, ran), self._states(work)
        self._stats_of = ran

    def stats(self) -> Stats:
        return self._summary(self._stats_of, self.carries.nbytes)

    def reversed(self) -> tuple[Slots, Slots, Stats]:
        """``(values at the saves, slots at the start, stats)`` of the way back."""
        problem, work = self.problem, self._work(self.final)
        self.carries.at = self.carries.bits
        ran = self._run(work, problem.steps, problem.saves[-2::-1], True, None)
        values = self._values(self.final, ran)
        return tuple(v.flip(0) for v in values), self._states(work), self._summary(ran, 0)  # type: ignore[return-value]

    def _run(self, work: Slots, position: int, saves: Sequence[int], undo: bool, progress: Callable[[int, int], None] | None) -> compiled.Ran:
        p = self.problem
        ran = compiled.run(
            self.native, p.micros, work, h=p.h, steps=p.steps, period=p.method.period, t0=p.t0, position=position, undo=undo, frac_bits=self.frac_bits,
            tableau=p.method.tableau, saves=saves, carries=self.carries, threads=self.threads, progress=progress,
        )  # fmt: skip
        if ran.bad_step >= 0:
            raise self._overflow(work, ran, undo)
        return ran

    def _overflow(self, work: Slots, ran: compiled.Ran, undo: bool) -> StateOverflowError:
        """The error of a run that ended early: the slots are those of the last micro-step that was right."""
        lead = self.shape[: len(self.shape) - self.event_dims]
        event = self.shape[len(lead) :]
        slots = tuple(w[ran.bad_system].reshape(*(1 for _ in lead), *event) for w in work)
        stats = ops.Stats(0, 1, self._in_units(ran.largest), -1)
        system = unravel(ran.bad_system, lead)
        return overflow(self._of_one(system), Moment(ran.bad_step, None, slots, system, undo), stats)

    def _of_one(self, system: tuple[int, ...]) -> Problem:
        """The problem with the units of one system, as a batch of one."""
        grid, lead = self.problem.grid, len(self.shape) - self.event_dims
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
        rows = []
        for scale in self.problem.grid.scales:
            full = torch.as_tensor(scale, dtype=torch.float64).expand(self.shape).reshape(self.batch, self.dim)
            exponent = torch.frexp(full)[1] - 1
            rows.append((self.problem.grid.format.frac_bits - exponent).to(torch.int32))
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

    def _values(self, first: Slots, ran: compiled.Ran) -> Slots:
        """Float values of the slots a run began with and of those it kept, (M, ...) each."""
        kept = (torch.cat([a[None], k.reshape(-1, *self.shape)]) for a, k in zip(first, ran.kept))
        return tuple(self.problem.grid.view(i, states, torch.float64) for i, states in enumerate(kept))  # type: ignore[return-value]

    def _summary(self, ran: compiled.Ran, carry_bytes: int) -> Stats:
        return self._stats(self.problem, ran.evaluations, self._in_units(ran.largest), carry_bytes)


def encode(problem: Problem, slots: Slots) -> Slots:
    """The slots in the state format. Raises StateOverflowError when the start does not fit."""
    states = []
    for i, x in enumerate(slots):
        state, stats = problem.grid.encode(i, x.detach())
        seen = ops.read_stats(stats)[0]
        if seen.bad and problem.grid.format.exact:
            raise overflow(problem, Moment(0, slots=(slots[0].detach(), slots[1].detach()), start=i), seen)
        states.append(state)
    return tuple(states)  # type: ignore[return-value]


def _walk(walker: Walker, saves: Sequence[int], progress: Callable[[int, int], None] | None) -> Slots:
    kept = []
    for save in saves:
        while walker.n < save:
            walker.forward()
            if progress is not None:
                progress(walker.n, saves[-1])
        kept.append((walker.view(0), walker.view(1)))
    walker.look()
    return torch.stack([a for a, _ in kept]), torch.stack([b for _, b in kept])
