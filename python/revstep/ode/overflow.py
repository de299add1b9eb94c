"""Where in an integration a value left its format, and what helps there: a smaller h, a larger unit, another format.

The run stops in the middle of a step. So that the advice is enough, the rest of that step is taken once more in plain floating
point from the last states that were right: the unit and the format that are named hold every value of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import StateOverflowError
from ..ops import Stats
from ..state import FixedPoint, StateFormat, places
from .equations import SECOND, SEPARABLE
from .methods.base import IDENTITY, Micro
from .problem import Problem

#: The unit or format that is advised holds this many times the largest value seen, if there is one that does.
HEADROOM = (4.0, 2.0, 1.0)
#: A format in units of 1 is advised where its grid is at least this fine beside the largest value of each slot.
FINE = 2.0**-40


@dataclass(frozen=True)
class Moment:
    """Where a run was when a value did not fit.

    Args:
        n: the step; k: the micro-step of it, in the order of the way up (None: not known).
        slots: the two states before that micro-step, of the whole problem or of the system in question (None: not kept);
            at the start their float values.
        system: index of that system along the leading axes of the state; () where ``slots`` are the whole state.
        undo: on the way back.
        start: the slot that was being encoded, before the first step; None: the run was under way.
    """

    n: int
    k: int | None = None
    slots: tuple[Tensor, Tensor] | None = None
    system: tuple[int, ...] = ()
    undo: bool = False
    start: int | None = None


@dataclass(frozen=True)
class Seen:
    """The failing step in plain floating point.

    Args:
        slot: which slot failed.
        index: the component.
        top: largest magnitude of each slot in this step, in the units of the problem's equation.
        field: what the field gave for that component; None where no field was asked.
        miss: how far the failing value is from the one that was reported.
    """

    slot: int
    index: tuple[int, ...]
    top: tuple[float, float]
    field: float | None = None
    miss: float = 0.0


@dataclass(frozen=True)
class Integration(places.Place):
    """A step of an integration: no block, no loss, no optimiser."""

    problem: Problem
    moment: Moment
    seen: Seen | None

    @property
    def layer(self) -> int:  # type: ignore[override]
        return self.moment.n

    @property
    def unit(self) -> str:  # type: ignore[override]
        return " / scale" if self.problem.grid.format.exact else ""

    @property
    def name(self) -> str:  # type: ignore[override]
        p, m = self.problem, self.moment
        where = f"step {m.n}, t = {p.time(m.n):.6g}"
        if m.start is not None:
            where += ", the start"
        elif m.undo:
            where += ", on the way back"
        if self.seen is not None:
            where += f", component {self.seen.index} of {slot_name(p, self.seen.slot)}"
        return where

    def advised(self, stats: Stats, fmt: StateFormat) -> StateFormat | None:
        needed = self._needed(stats)
        if needed is None or not fmt.exact:
            return None
        if not self.problem.grid.own_scale:
            return fmt.wider(max(n / _least(s) for n, s in zip(needed, self.problem.grid.scales)))
        return in_units_of_one(needed)

    def advice(self, stats: Stats, fmt: StateFormat) -> str:
        return f"{self._cause(stats, fmt)}: {self._cure(stats, fmt)}"

    def _cause(self, stats: Stats, fmt: StateFormat) -> str:
        p, m, seen = self.problem, self.moment, self.seen
        if m.start is not None:
            what = "does not fit" if math.isfinite(stats.largest) else "is not finite"
            return f"the start {what}, and the field has not been asked yet"
        if m.undo:
            return (
                "a step that was taken can be undone within the range, so the field gave other values than on the way there "
                "(hidden state, changed parameters)" + ("" if fmt.exact else ", or rounding errors grew on the way back")
            )
        given = None if seen is None else seen.field
        if given is not None and not math.isfinite(given):
            return f"the field returned {given} for that component"
        if not math.isfinite(stats.largest) and given is None:
            return f"the solution grows without bound, or h = {p.h} is outside the stability region, or the field returned NaN or Inf there"
        field = "" if given is None else f" (the field returned {given:.6g} for that component)"
        return f"the solution grows without bound, or h = {p.h} is outside the stability region{field}"

    def _cure(self, stats: Stats, fmt: StateFormat) -> str:
        p, m, seen = self.problem, self.moment, self.seen
        if m.undo:
            return "let the field depend on t, its argument and args alone" + ("" if fmt.exact else ", or take a FixedPoint(64, ...) state")
        if m.start is None and seen is not None and seen.field is not None and not math.isfinite(seen.field):
            return f"look for a singularity or the end of the field's domain near t = {p.time(m.n):.6g}, and take a smaller h or stop before it"
        needed = self._needed(stats)
        ways = [] if m.start is not None else ["take a smaller h if the solution should stay bounded"]
        if needed is None or not fmt.exact:
            return ways[0] if ways else "give a finite start"
        scale = larger_scale(p, needed)
        if scale is not None:
            ways.append(f"pass {scale}")
        wider = self.advised(stats, fmt)
        if isinstance(wider, FixedPoint):
            alone = "without scale=" if p.grid.own_scale else "with the same scale"
            ways.append(f"{alone}, {places.take(fmt, wider)}")
        return ", or ".join(ways) if ways else "give a smaller start: no fixed-point format holds such values"

    def _needed(self, stats: Stats) -> tuple[float, float] | None:
        """Largest magnitude of each slot that unit and format have to hold."""
        if self.seen is not None:
            tops = self.seen.top
            if self.moment.system and math.isfinite(stats.largest):  # other systems may have failed in the same step
                tops = tuple(max(top, stats.largest * _most(s)) for top, s in zip(tops, self.problem.grid.scales))
            return tops if all(map(math.isfinite, tops)) else None  # type: ignore[return-value]
        if not math.isfinite(stats.largest):
            return None
        # The kernel reports an increment that is out of range by itself; the states can still enlarge the sum.
        weights = max((abs(m.alpha) + abs(m.beta) for m in self.problem.micros(self.moment.n)), default=0.0)
        largest = stats.largest + weights * self.problem.grid.format.limit
        return tuple(largest * _most(s) for s in self.problem.grid.scales)  # type: ignore[return-value]


def overflow(problem: Problem, moment: Moment, stats: Stats, args: Sequence[Any] = ()) -> StateOverflowError:
    """The error of a value that left its format; ``stats.largest`` in units of the slot's scale."""
    return places.overflow(stats, problem.grid.format, Integration(problem, moment, _again(problem, moment, stats, args)))


def slot_name(problem: Problem, i: int) -> str:
    """What slot ``i`` holds, in the letters of the guide."""
    if any(m.beta for m in problem.micros(1)):  # two steps of one quantity
        return "q" if problem.equation in (SECOND, SEPARABLE) else "y"
    return {SECOND: "qv", SEPARABLE: "qp"}[problem.equation][i] if problem.equation in (SECOND, SEPARABLE) else "y"


def larger_scale(problem: Problem, needed: Sequence[float]) -> str | None:
    """``scale=...`` with which the format holds ``needed``, as the caller writes it; None: there is none below 2**256."""
    grid = problem.grid
    for headroom in HEADROOM:
        factors = [_factor(headroom * n / (_least(s) * grid.format.limit)) for n, s in zip(needed, grid.scales)]
        if all(isinstance(s, float) for s in grid.scales):
            scales = [f * s for f, s in zip(factors, grid.scales)]
            if max(scales) > 2.0**256:
                continue
            shared = any(m.beta for m in problem.micros(1))
            texts = [f"2.0**{round(math.log2(s))}" for s in ([max(scales)] if shared else scales)]
            return f"scale={texts[0]}" if len(set(texts)) == 1 else f"scale=({', '.join(texts)})"
        if max(f * _most(s) for f, s in zip(factors, grid.scales)) <= 2.0**256:
            return f"{max(factors):g} times the scale"
    return None


def in_units_of_one(needed: Sequence[float]) -> FixedPoint | None:
    """The finest 64-bit format that holds ``needed`` without a scale; None where none does, or too coarsely for a slot."""
    for headroom in HEADROOM:
        for frac in range(61, -1, -1):
            fmt = FixedPoint(64, frac)
            if fmt.limit > headroom * max(needed):
                return fmt if all(n == 0.0 or fmt.grid <= FINE * n for n in needed) else None
    return None


def _factor(excess: float) -> float:
    """The power of two above ``excess``, at least 1."""
    return 1.0 if excess < 1.0 else 2.0 ** (math.floor(math.log2(excess)) + 1)


def _least(scale: Any) -> float:
    return scale if isinstance(scale, float) else float(scale.min())


def _most(scale: Any) -> float:
    return scale if isinstance(scale, float) else float(scale.max())


# ---- the failing step once more, in plain floating point ----


def _again(problem: Problem, moment: Moment, stats: Stats, args: Sequence[Any]) -> Seen | None:
    if moment.slots is None:
        return None
    if moment.start is not None:
        xs = list(moment.slots)
        return Seen(moment.start, places.unravel(stats.first_bad, xs[0].shape), (_top(xs[0]), _top(xs[1])))
    with torch.no_grad():
        xs = [problem.grid.view(i, s, problem.dtype) for i, s in enumerate(moment.slots)]
        micros = problem.micros(moment.n)
        order = list(range(len(micros)))[:: -1 if moment.undo else 1]
        found = []
        for k in order if moment.k is None else [moment.k]:  # the compiled loop does not say which: one that fails with these slots
            seen = _rest(problem, moment, list(xs), [micros[j] for j in order[order.index(k) :]], stats, args)
            if seen is not None:
                found.append(seen)
    return min(found, key=lambda seen: seen.miss, default=None)


def _rest(
    problem: Problem, moment: Moment, xs: list[Tensor], micros: Sequence[Micro], stats: Stats, args: Sequence[Any]
) -> Seen | None:
    """Take the micro-steps that are left; None where the first of them does not fail."""
    first: Seen | None = None
    tops = [_top(x) for x in xs]
    for micro in micros:
        i, j, t = micro.slot, 1 - micro.slot, problem.time(moment.n, micro.tau)
        try:
            given = problem.phi(micro, xs[j], torch.tensor(t, dtype=problem.dtype, device=xs[j].device), problem.h, args)
        except Exception:  # the caller's field, beyond the states it was written for: what is known so far has to do
            return first
        alpha, beta, gamma = micro.alpha, micro.beta, micro.gamma(problem.h)
        if moment.undo:
            alpha, beta, gamma = 1.0 / alpha, -beta / alpha, -gamma / alpha
        added = gamma * given
        xs[i] = alpha * xs[i] + added + (beta * xs[j] if beta else 0.0)
        tops[i] = max(tops[i], _top(xs[i]), _top(added))  # the loops want each increment in range by itself
        if first is None:
            first = _first_bad(problem, moment, micro, xs[i], given, added, stats)
            if first is None:
                return None
        first = replace(first, top=(tops[0], tops[1]))
    return first


def _first_bad(
    problem: Problem, moment: Moment, micro: Micro, x: Tensor, given: Tensor, added: Tensor, stats: Stats
) -> Seen | None:
    grid, i = problem.grid, micro.slot
    over = ~(grid.into(i, x).abs().double() < grid.format.limit) | ~(grid.into(i, added).abs().double() < grid.format.limit)
    if stats.first_bad < 0 and not bool(over.any()):
        return None
    flat = stats.first_bad if stats.first_bad >= 0 else int(over.reshape(-1).to(torch.int8).argmax())
    index = places.unravel(flat, x.shape)
    asked = None if micro.field == IDENTITY else float(given.reshape(-1)[flat])
    sizes = [_top(grid.into(i, v)) for v in (x, added)]
    miss = min(0.0 if size == stats.largest else abs(size - stats.largest) for size in sizes)
    return Seen(i, (*moment.system, *index[len(moment.system) :]), (0.0, 0.0), asked, miss)


def _top(x: Tensor) -> float:
    """Largest magnitude; inf for NaN."""
    return float(x.abs().nan_to_num(math.inf).max()) if x.numel() else 0.0
