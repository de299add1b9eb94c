"""The two ways to take the steps of a problem: on tensors, and in the compiled loop. Both leave the same things behind."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import StateOverflowError, UnsupportedError
from ..state.places import unravel
from . import compiled, gradient
from .draws import Draws, same_bits
from .evaluations import Arguments, Evaluations, LeafActs
from .gradient import Job
from .loop import Walker
from .overflow import Moment, overflow
from .problem import Problem
from .solution import Stats
from .surroundings import Surroundings

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

    @contextlib.contextmanager
    def again(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Around evaluations on the way back: as they were on the way up.

        Yields what makes a field's argument of a tensor.
        """
        with torch.no_grad():
            yield lambda x: x

    def _stats(self, problem: Problem, evaluations: int, largest: float, carry_bytes: int, bytes_saved: int = 0) -> Stats:
        fmt = problem.grid.format
        headroom = fmt.limit / largest if fmt.exact and largest else float("inf")
        return Stats(problem.method.name, str(fmt), self.loop, problem.h, problem.steps, evaluations, headroom, carry_bytes, bytes_saved)


class OnTensors(_Run):
    """Micro-steps on tensors; with a graph where a gradient is wanted.

    A run begins without a graph unless something that is given requires a gradient, and begins again with one
    when a value of the field does (its parameters are behind a closure, or act later in time). What acted is
    found during the run.

    Attributes:
        walker: at the end of the run.
        job: what backward knows; None where nothing is differentiated.
    """

    loop = "python"

    def __init__(self, problem: Problem, field: Any, slots: Slots, h: Any, t0: Any, args: Sequence[Any], progress: Callable[[int, int], None] | None):
        self.problem = problem
        self.start = encode(problem, slots)
        self.surroundings, self.job = Surroundings(), None
        arguments, records = Arguments(args), self.surroundings.records
        inputs = [x for x in (*slots, h, t0, *arguments.tensors) if isinstance(x, Tensor) and x.requires_grad]
        modules = [f for f in (*field.functions(), field) if isinstance(f, nn.Module)]
        graph = records and bool(inputs or any(p.requires_grad for m in modules for p in m.parameters()))
        draws = Draws([slots[0].device])
        with self.surroundings.now(), torch.set_grad_enabled(records):
            try:
                marks = self._walk(Evaluations(problem, arguments, graph, records), progress)
            except LeafActs:
                graph = True
                marks = self._walk(Evaluations(problem, arguments, graph, records), progress)
            moved = draws.moved()
            if moved:
                self._check_repeats(moved)
        self.final = tuple(self.walker.slots)  # type: ignore[assignment]
        leaves = self.evaluations.leaves.alive()
        if graph and (inputs or leaves):
            self.job = Job(problem, arguments, self.surroundings, marks)
            self.kept = gradient.attach(self.job, self.walker, self.kept, slots, h, t0, leaves)

    def _walk(self, evaluations: Evaluations, progress: Any) -> dict[int, Tensor]:
        """The run. Returns checksums of the slots at the saved steps where backward may ask for them."""
        problem, marks, kept = self.problem, {}, []
        self.evaluations = evaluations
        walker = self.walker = Walker(problem, self.start, evaluations.args, ask=evaluations.forward)
        for save in problem.saves:
            while walker.n < save:
                walker.forward()
                if progress is not None:
                    progress(walker.n, problem.steps)
            kept.append((walker.view(0).clone(), walker.view(1).clone()))
            if evaluations.graph and problem.grid.format.exact:
                marks[save] = walker.checksums()
        walker.look()
        self.kept = torch.stack([a for a, _ in kept]), torch.stack([b for _, b in kept])
        return marks

    def _check_repeats(self, moved: Sequence[str]) -> None:
        """Somebody drew random numbers. It was not the field if the run taken again ends in the same bits."""
        walker = Walker(self.problem, self.start, self.evaluations.args, ask=self.evaluations.again)
        while walker.n < self.problem.steps:
            walker.forward()
        if not all(same_bits(a, b) for a, b in zip(walker.slots, self.walker.slots)):
            raise UnsupportedError(
                f"the field is random or keeps hidden state: the generator of {' and of '.join(moved)} was "
                "used during the run, and the run taken again ends elsewhere: it draws random numbers, so "
                "that no step could be undone. Draw them before and pass them in args="
            )

    def stats(self) -> Stats:
        w = self.walker
        carry_bytes = sum(c.numel() * c.element_size() for c in w.carries)
        return self._stats(self.problem, w.evaluations, w.largest, carry_bytes, self.job.bytes_saved if self.job else 0)

    @contextlib.contextmanager
    def again(self) -> Iterator[Callable[[Tensor], Tensor]]:
        with self.surroundings.again():
            yield self.evaluations.argument

    def reversed(self) -> tuple[Slots, Slots, Stats]:
        """``(values at the saves, slots at the start, stats)`` of the way back."""
        evaluations = self.evaluations
        n, carries = self.problem.steps, self.walker.carries
        walker = Walker(self.problem, self.final, evaluations.args, n, carries, ask=evaluations.again)
        with self.surroundings.again(), torch.set_grad_enabled(self.surroundings.records):
            kept = [(walker.view(0), walker.view(1))]
            for save in reversed(self.problem.saves[:-1]):
                while walker.n > save:
                    walker.back()
                kept.append((walker.view(0).clone(), walker.view(1).clone()))
            walker.look()
        with torch.no_grad():
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
        self.frac_bits = tuple(self._frac_bits(i, field) for i in (0, 1)) if grid.format.exact else None
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
        return overflow(self.problem, Moment(ran.bad_step, None, slots, system, undo), stats)

    def _frac_bits(self, i: int, field: Any) -> Tensor:
        """Per component: X 2**-F scale is X 2**-(F - log2 scale)."""
        event = self.shape[len(self.shape) - field.event_dims :]
        scale = torch.as_tensor(self.problem.grid.scales[i], dtype=torch.float64)
        exponent = torch.frexp(scale.expand(event).reshape(-1))[1] - 1
        return (self.problem.grid.format.frac_bits - exponent).to(torch.int32)

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
