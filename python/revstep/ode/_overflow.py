"""Where in an integration a value left its format, and what helps: a smaller h, a larger unit, more range.

The run stops in the middle of a step. So that the advice is enough, the rest of that step is taken once more
in plain floating point from the last states that were right: the unit and the format that are named hold
every value of it.
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
from ..state import StateFormat, _places
from . import _units
from ._problem import Problem, scalar_on
from .methods._base import IDENTITY, Micro

#: The unit that is advised holds this many times the largest value seen, if there is one that does.
HEADROOM = (4.0, 2.0, 1.0)
#: Units go up to this one in the compiled loop.
LARGEST_SCALE = 2.0**256


@dataclass(frozen=True)
class Moment:
    """Where a run was when a value did not fit.

    Args:
        n: the step.
        k: the micro-step of it, in the order of the way up; None: not known.
        slots: the two states before that micro-step, of the whole problem or of the system in question; None:
            they were not kept. At the start, their float values.
        system: index of that system along the leading axes of the state; () where ``slots`` are all of it.
        undo: on the way back.
        start: the slot that was being encoded, before the first step; None: the run was under way.
    """

    n: int
    k: int | None = None
    slots: Sequence[Tensor] | None = None
    system: tuple[int, ...] = ()
    undo: bool = False
    start: int | None = None


@dataclass(frozen=True)
class Seen:
    """The failing step in plain floating point.

    Args:
        slot: which slot failed.
        index: the component.
        top: largest magnitude of each slot in this step, in the units of the equation.
        field: what the field gave for that component; None where no field was asked.
        miss: how far the failing value is from the one that was reported.
    """

    slot: int
    index: tuple[int, ...]
    top: tuple[float, float]
    field: float | None = None
    miss: float = 0.0


@dataclass(frozen=True)
class Integration(_places.Place):
    """A step of an integration, which knows no block, no loss and no optimiser."""

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
        problem, moment = self.problem, self.moment
        where = f"step {moment.n}, t = {problem.time(moment.n):.6g}"
        if moment.start is not None:
            where += ", the start"
        elif moment.undo:
            where += ", on the way back"
        if self.seen is not None:
            where += f", component {self.seen.index} of {problem.slot_names[self.seen.slot]}"
        return where

    @property
    def no_number(self) -> bool:
        """The field gave NaN or Inf for the component that failed."""
        return self.seen is not None and self.seen.field is not None and not math.isfinite(self.seen.field)

    def advised(self, stats: Stats, fmt: StateFormat) -> StateFormat | None:
        needed = self._needed(stats)
        if needed is None or self.moment.undo or not fmt.exact:
            return None
        return fmt.wider(max(n / _least(s) for n, s in zip(needed, self.problem.grid.scales)))

    def advice(self, stats: Stats, fmt: StateFormat) -> str:
        return f"{self._cause(stats, fmt)}: {self._cure(stats, fmt)}"

    def _cause(self, stats: Stats, fmt: StateFormat) -> str:
        if self.moment.start is not None:
            what = "does not fit" if math.isfinite(stats.largest) else "is not finite"
            return f"the start {what}, and the field has not been asked yet"
        if self.moment.undo and fmt.exact:
            return "a step that was taken can be undone in range, so the field gave other values than before"
        if self.moment.undo:
            return "rounding errors grew on the way back, or the field gave other values than before"
        if self.no_number:
            return f"the field returned {self.seen.field} for that component"
        problem = self.problem
        cause = f"the solution grows without bound, or h = {problem.h} is outside the stability region"
        method, equation = problem.method, problem.equation
        # Copies are watched in the loop.
        parasite = None if method.copies(equation) else method.parasite(equation)
        cause += f", or it is not the solution that grew ({parasite})" if parasite else ""
        if self.seen is not None and self.seen.field is not None:
            return f"{cause} (the field returned {self.seen.field:.6g} for that component)"
        return cause if math.isfinite(stats.largest) else f"{cause}, or the field returned NaN or Inf there"

    def _cure(self, stats: Stats, fmt: StateFormat) -> str:
        problem = self.problem
        started = self.moment.start is None
        if self.moment.undo:
            same = "let the field depend on t, its argument and args alone"
            return same if fmt.exact else f"{same}, or take a FixedPoint(64, ...) state, which is exact"
        if started and self.no_number:
            near = f"near t = {problem.time(self.moment.n):.6g}"
            what = "a singularity or the end of the field's domain"
            return f"look for {what} {near}, and take a smaller h or stop before it"
        needed = self._needed(stats)
        if needed is None or not fmt.exact:
            return "take a smaller h, or stop before this step" if started else "give a start that is finite"
        ways = ["take a smaller h if the solution should stay bounded"] if started else []
        scale = larger_scale(problem, needed)
        if scale is not None:
            ways.append(f"pass {_units.written(scale, self.problem.grid.pairs)}")
        wider = _places.take(fmt, self.advised(stats, fmt))
        if wider is not None:
            ways.append(wider + with_scale(problem))
        return ", or ".join(ways) if ways else "give a smaller start: no fixed-point format holds such values"

    def scale(self, stats: Stats) -> Any:
        """What to pass as ``scale=``; None where no scale is the answer."""
        needed = self._needed(stats)
        if needed is None or self.moment.undo or not self.problem.grid.format.exact or self.no_number:
            return None
        scales = larger_scale(self.problem, needed)
        return None if scales is None else _units.as_argument(scales, self.problem.grid.pairs)

    def _needed(self, stats: Stats) -> tuple[float, ...] | None:
        """Largest magnitude of each slot that unit and format have to hold; None where it is not finite."""
        scales = self.problem.grid.scales
        finite = math.isfinite(stats.largest)
        if self.seen is None:
            if not finite:
                return None
            # An increment out of range is reported by itself, and the states can still enlarge the sum.
            micros = self.problem.micros(self.moment.n)
            weights = max((abs(m.alpha) + abs(m.beta) for m in micros), default=0.0)
            largest = stats.largest + weights * self.problem.grid.format.limit
            return tuple(largest * _most(s) for s in scales)
        tops = self.seen.top
        if self.moment.system and finite:  # other systems may have failed in the same step
            tops = tuple(max(top, stats.largest * _most(s)) for top, s in zip(tops, scales))
        return tops if all(map(math.isfinite, tops)) else None


def overflow(problem: Problem, moment: Moment, stats: Stats, args: Sequence[Any] = ()) -> StateOverflowError:
    """The error of a value that left its format; ``stats.largest`` in units of the slot's scale."""
    place = Integration(problem, moment, _again(problem, moment, stats, args))
    error = _places.overflow(stats, problem.grid.format, place)
    error.scale = place.scale(stats)
    return error


def larger_scale(problem: Problem, needed: Sequence[float]) -> tuple[Any, ...] | None:
    """Scales with which the format holds ``needed``; None: no unit is that large."""
    grid = problem.grid
    for headroom in HEADROOM:
        excess = (headroom * n / (_least(s) * grid.format.limit) for n, s in zip(needed, grid.scales))
        factors = [1.0 if e < 1.0 else 2.0 ** (math.floor(math.log2(e)) + 1) for e in excess]
        if max(f * _most(s) for f, s in zip(factors, grid.scales)) > LARGEST_SCALE:
            continue
        scales = [f * s for f, s in zip(factors, grid.scales)]
        return (_larger(*scales),) if problem.shared else tuple(scales)
    return None


def _larger(a: Any, b: Any) -> Any:
    return (
        max(a, b)
        if isinstance(a, float) and isinstance(b, float)
        else torch.maximum(*map(torch.as_tensor, (a, b)))
    )


def with_scale(problem: Problem) -> str:
    """What has to be passed beside another format so that the scales stay as they were."""
    if problem.grid.chosen:
        return ""
    return f", together with {_units.written(problem.grid.scales, problem.grid.pairs)} as in this run"


def _least(scale: Any) -> float:
    return scale if isinstance(scale, float) else float(scale.min())


def _most(scale: Any) -> float:
    return scale if isinstance(scale, float) else float(scale.max())


# ---- the failing step once more, in plain floating point ----


def _again(problem: Problem, moment: Moment, stats: Stats, args: Sequence[Any]) -> Seen | None:
    if moment.slots is None:
        return None
    if moment.start is not None:
        xs = moment.slots
        return Seen(moment.start, _places.unravel(stats.first_bad, xs[0].shape), (_top(xs[0]), _top(xs[1])))
    micros = problem.micros(moment.n)
    order = list(range(len(micros)))
    if moment.undo:
        order.reverse()
    found = []
    # The compiled loop does not say which micro-step failed: it is one that fails with these slots.
    for k in order if moment.k is None else [moment.k]:
        seen = _Rest(problem, moment, stats, args).take([micros[j] for j in order[order.index(k) :]])
        if seen is not None:
            found.append(seen)
    return min(found, key=lambda seen: seen.miss, default=None)


class _Rest:
    """What was left of a step, from the micro-step that failed on."""

    def __init__(self, problem: Problem, moment: Moment, stats: Stats, args: Sequence[Any]):
        self.problem = problem
        self.moment = moment
        self.stats = stats
        self.args = args
        with torch.no_grad():
            self.xs = [problem.grid.view(i, s, problem.dtype) for i, s in enumerate(moment.slots)]

    @torch.no_grad()
    def take(self, micros: Sequence[Micro]) -> Seen | None:
        """The failing value and the largest of the rest; None where the first micro-step does not fail."""
        xs = self.xs
        seen = None
        tops = [_top(x) for x in xs]
        for micro in micros:
            i, j = micro.slot, 1 - micro.slot
            try:
                given = self._field(micro, xs[j])
            except Exception:  # of the caller's field, beyond what it is made for: what is known has to do
                return seen
            alpha, beta, gamma = micro.alpha, micro.beta, micro.gamma(self.problem.h)
            if self.moment.undo:
                alpha, beta, gamma = 1.0 / alpha, -beta / alpha, -gamma / alpha
            added = gamma * given
            xs[i] = alpha * xs[i] + added + (beta * xs[j] if beta else 0.0)
            tops[i] = max(tops[i], _top(xs[i]), _top(added))  # an increment has to fit by itself
            seen = self._failed(micro, given, added) if seen is None else seen
            if seen is None:
                return None
            seen = replace(seen, top=(tops[0], tops[1]))
        return seen

    def _field(self, micro: Micro, x: Tensor) -> Tensor:
        t = self.problem.time(self.moment.n, micro.tau)
        at = scalar_on(x.device, t, self.problem.dtype)
        return self.problem.phi(micro, x, at, self.problem.h, self.args)

    def _failed(self, micro: Micro, given: Tensor, added: Tensor) -> Seen | None:
        grid = self.problem.grid
        i = micro.slot
        flat = self.stats.first_bad
        both = [grid.into(i, v).abs().double() for v in (self.xs[i], added)]
        if flat < 0:
            over = ~((both[0] < grid.format.limit) & (both[1] < grid.format.limit))  # NaN is not below it
            if not bool(over.any()):
                return None
            flat = int(over.reshape(-1).to(torch.int8).argmax())
        index = _places.unravel(flat, given.shape)
        asked = None if micro.field == IDENTITY else float(given.reshape(-1)[flat])
        reported = self.stats.largest
        sizes = map(_top, both)
        miss = min(0.0 if size == reported else abs(size - reported) for size in sizes)
        lead = self.moment.system
        return Seen(i, (*lead, *index[len(lead) :]), (0.0, 0.0), asked, miss)


def _top(x: Tensor) -> float:
    """Largest magnitude; inf for NaN."""
    return float(x.abs().nan_to_num(math.inf).max()) if x.numel() else 0.0
