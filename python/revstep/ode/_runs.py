"""A run, what it leaves behind, and the way to take its steps on tensors."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .. import ops
from ..errors import ConfigError, FallbackWarning, UnsupportedError
from . import _gradient, _replay, _watch
from ._bits import Bits
from ._evaluations import Arguments, Evaluations, LeafActs
from ._gradient import Job, Surroundings
from ._loop import Members, Walker
from ._overflow import Moment, overflow
from ._problem import Problem
from ._solution import Stats
from ._starts import Draws, same_bits
from ._watch import Watch

Slots = tuple[Tensor, Tensor]


class Run:
    """What a run leaves behind.

    Attributes:
        saved: float values of the two slots at the problem's saves, (M, ...) each.
        start: the slots at the beginning, in the state format.
        final: the slots at the end.
        watch: what was noticed of the grid on the way up.
        fallback: why a run does not replay the field's operators where that was asked for.
        away: sizes of what the start lost to the grid; None: nothing, as a run that goes on has no other
            start.
        failed: the step at which each member failed that did.
    """

    loop: str
    saved: Slots
    start: Slots
    final: Slots
    watch: Watch
    away: Slots | None = None
    fallback: str | None = None
    failed: Mapping[tuple[int, ...], int] = MappingProxyType({})

    @contextlib.contextmanager
    def again(self) -> Iterator[Callable[[Tensor], Tensor]]:
        """Around evaluations on the way back: as they were on the way up.

        Yields what makes a field's argument of a tensor.
        """
        with torch.no_grad():
            yield lambda x: x

    def arrived(self, at_start: Slots) -> bool:
        """The slots are those the run began with, bit for bit."""
        return all(torch.equal(a, b) for a, b in zip(at_start, self.start))

    def _stats(
        self,
        problem: Problem,
        evaluations: int,
        largest: float,
        carry_bytes: int,
        bytes_saved: int = 0,
        seen: Watch | None = None,
    ) -> Stats:
        fmt = problem.grid.format
        headroom = fmt.limit / largest if fmt.exact and largest else float("inf")
        noticed = {} if seen is None else seen.to_stats(problem)
        return Stats(
            problem.method.name,
            str(fmt),
            self.loop,
            problem.h,
            problem.steps,
            evaluations,
            headroom,
            carry_bytes,
            bytes_saved,
            problem.grid.scales,
            fallback=self.fallback,
            **noticed,
        )

    def judge(self, args: Sequence[Any]) -> None:
        """Raise or warn where the grid was too coarse for a component of the run."""

        def increments() -> Slots:
            with self.again() as argument:
                return _watch.increments(self.problem, self.final, argument, args)

        largest = [k.abs().amax(0) for k in self.saved]
        _watch.judge(self.problem, self.watch, self.start, self.final, largest, increments, self.away)


class OnTensors(Run):
    """Micro-steps on tensors; with a graph where a gradient is wanted.

    A run begins without a graph unless something that is given requires a gradient, and begins again with one
    when a value of the field does (its parameters are behind a closure, or act later in time). What acted is
    found during the run.

    Attributes:
        walker: at the end of the run.
        job: what backward knows; None where nothing is differentiated.
    """

    loop = "python"
    captures: _replay.Captures | None = None

    def __init__(
        self,
        problem: Problem,
        field: Any,
        slots: Slots,
        h: Any,
        t0: Any,
        args: Sequence[Any],
        progress: Callable[[int, int], None] | None,
        before: Bits | None = None,
        on_failure: str = "raise",
        captured: bool = False,
    ):
        self.problem = problem
        self.start = encode(problem, slots) if before is None else before.slots()
        self.away = None if before is not None else _watch.rounded_away(problem, slots, self.start)
        # The last axis of complex states holds real and imaginary parts.
        self.event_dims = getattr(field, "event_dims", min(1 + problem.grid.pairs, slots[0].ndim))
        self.dropping = on_failure == "drop"
        self.members = None
        self.surroundings = Surroundings()
        self.job = None
        arguments = Arguments(args)
        grad_enabled = self.surroundings.grad_enabled
        inputs = [x for x in (*slots, h, t0, *arguments.tensors) if isinstance(x, Tensor) and x.requires_grad]
        modules = [f for f in (*field.functions(), field) if isinstance(f, nn.Module)]
        graph = grad_enabled and bool(inputs or any(p.requires_grad for m in modules for p in m.parameters()))
        if captured:
            scalars = any(_wants_gradient(x) for x in (h, t0)) and grad_enabled
            self.fallback = _replay.refusal(problem, slots[0].device, scalars, self.dropping)
        self.captured = captured and self.fallback is None
        draws = Draws([slots[0].device])
        with self.surroundings.now(), torch.set_grad_enabled(grad_enabled):
            try:
                marks = self._tried(lambda: Evaluations(problem, arguments, graph, grad_enabled), progress)
            except LeafActs:
                graph = True
                marks = self._tried(lambda: Evaluations(problem, arguments, graph, grad_enabled), progress)
            moved = draws.moved()
            if moved:
                self._check_repeats(moved)
        self.final = tuple(self.walker.states)  # type: ignore[assignment]
        self.watch.at_the_end(problem, self.final)
        leaves = self.evaluations.leaves.alive()
        if graph and (inputs or leaves):
            if self.dropping:
                raise ConfigError(
                    "on_failure='drop' gives no gradients: leave it out, or run under torch.no_grad()"
                )
            self.job = Job(problem, arguments, self.surroundings, marks)
            if self.captures is not None:
                self.job.captures, self.job.sweep = self.captures, _replay.ReplaySweep
            self.saved = _gradient.attach(self.job, self.walker, self.saved, slots, h, t0, leaves)

    def _tried(self, evaluations: Callable[[], Evaluations], progress: Any) -> dict[int, Tensor]:
        """The run with the field's operators replayed where that is asked for, or by the field itself, with
        a warning that says why.
        """
        self.captures = None
        if self.captured:
            own = evaluations()
            self.captures = _replay.Captures(own)
            try:
                marks = self._walk(own, progress)
                self.loop = "captured"
                return marks
            except _replay.NotCapturedError as error:
                self.fallback, self.captures = str(error), None
        if self.fallback is not None:
            warnings.warn(
                FallbackWarning(f"loop='captured' cannot run this, and loop='python' does: {self.fallback}"),
                stacklevel=5,
            )
        return self._walk(evaluations(), progress)

    def _walker(self, ask: str, *args: Any, **options: Any) -> Walker:
        """``ask``: of the captures, or of the evaluations where nothing was captured."""
        if self.captures is None:
            return Walker(self.problem, *args, ask=getattr(self.evaluations, ask), **options)
        return _replay.walk(self.captures, self.problem, *args, ask=getattr(self.captures, ask), **options)

    def _walk(self, evaluations: Evaluations, progress: Any) -> dict[int, Tensor]:
        """The run. Returns checksums of the slots at the saved steps where backward may ask for them."""
        problem = self.problem
        marks = {}
        saved = []
        self.evaluations = evaluations
        self.watch = Watch.of(self.start)
        if problem.method.copies(problem.equation):
            self.watch.sizes = _watch.sizes(problem, self.start, self.event_dims)
        if self.dropping:
            self.members = Members(self.start[0].shape, self.event_dims)
        walker = self.walker = self._walker(
            "forward", self.start, evaluations.args, problem.first, watch=self.watch, members=self.members
        )
        for save in problem.saves:
            while walker.n < save:
                walker.forward()
                if progress is not None:
                    progress(walker.n - problem.first, problem.steps)
            saved.append((walker.view(0).clone(), walker.view(1).clone()))
            if evaluations.graph and problem.grid.format.exact:
                marks[save] = walker.checksums()
        walker.look()
        self.saved = self._stacked(saved)
        return marks

    def _stacked(self, saved: Sequence[Slots]) -> Slots:
        """(M, ...) of each slot; NaN where members failed."""
        values = torch.stack([a for a, _ in saved]), torch.stack([b for _, b in saved])
        for index in self.failed:
            for v in values:
                v[(slice(None), *index)] = math.nan
        return values

    @property
    def failed(self) -> dict[tuple[int, ...], int]:  # type: ignore[override]
        return self.members.failed if self.members is not None else {}

    def arrived(self, at_start: Slots) -> bool:
        pairs = zip(at_start, self.start)
        if self.members is None:
            return all(torch.equal(a, b) for a, b in pairs)
        return all(torch.equal(*(self.members.without(x) for x in pair)) for pair in pairs)

    def _check_repeats(self, moved: Sequence[str]) -> None:
        """Somebody drew random numbers. It was not the field if the run taken again ends in the same bits."""
        walker = Walker(
            self.problem, self.start, self.evaluations.args, self.problem.first, ask=self.evaluations.again
        )
        while walker.n < self.problem.last:
            walker.forward()
        if not all(same_bits(a, b) for a, b in zip(walker.states, self.walker.states)):
            raise UnsupportedError(
                f"the field is random or keeps hidden state: the generator of {' and of '.join(moved)} was "
                "used during the run, and the run taken again ends elsewhere: it draws random numbers, so "
                "that no step could be undone. Draw them before and pass them in args="
            )

    def stats(self) -> Stats:
        w = self.walker
        carry_bytes = sum(c.numel() * c.element_size() for c in w.carries)
        for_backward = self.job.bytes_saved if self.job else 0
        return self._stats(
            self.problem, w.evaluations, w.ledger.largest, carry_bytes, for_backward, self.watch
        )

    @contextlib.contextmanager
    def again(self) -> Iterator[Callable[[Tensor], Tensor]]:
        with self.surroundings.again():
            yield self.evaluations.argument

    def reversed(self) -> tuple[Slots, Slots, Stats]:
        """``(values at the saves, slots at the start, stats)`` of the way back."""
        evaluations = self.evaluations
        walker = self._walker(
            "again",
            self.final,
            evaluations.args,
            self.problem.last,
            self.walker.carries,
            members=self.members,
        )
        with self.surroundings.again(), torch.set_grad_enabled(self.surroundings.grad_enabled):
            saved = [(walker.view(0), walker.view(1))]
            for save in reversed(self.problem.saves[:-1]):
                while walker.n > save:
                    walker.back()
                saved.append((walker.view(0).clone(), walker.view(1).clone()))
            walker.look()
        with torch.no_grad():
            values = self._stacked(saved[::-1])
        return (
            values,
            tuple(walker.states),
            self._stats(self.problem, walker.evaluations, walker.ledger.largest, 0),
        )  # type: ignore[return-value]


def _wants_gradient(x: Any) -> bool:
    return isinstance(x, Tensor) and x.requires_grad


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
