"""The two ways to take the steps of a problem: on tensors, and in the compiled loop. Both leave the same things behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .. import ops
from . import gradient
from .loop import Walker, overflow
from .methods.base import IDENTITY
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
        self.start = self._encode(slots)
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

    def _encode(self, slots: Slots) -> Slots:
        states = []
        for i, x in enumerate(slots):
            state, stats = self.problem.grid.encode(i, x.detach())
            seen = ops.read_stats(stats)[0]
            if seen.bad and self.problem.grid.format.exact:
                raise overflow(self.problem, 0, seen.largest, seen.bad)
            states.append(state)
        return tuple(states)  # type: ignore[return-value]

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
