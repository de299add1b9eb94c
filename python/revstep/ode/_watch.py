"""What the grid did to a run: increments that rounded to zero, the bits of those that did not, the distance
of two copies.

It is seen on some of the steps, the same ones in both loops, and judged when the run is over: a component
that should have moved and never did is an error, one whose increments have few bits where another unit would
give more is a warning.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ParasiticModeError, ResolutionError, ResolutionWarning
from ..state import StateFormat
from . import _units
from ._problem import Problem, scalar_on
from ._records import EVERY_STEP_UNTIL
from .methods._base import IDENTITY

#: Increments of at least this many bits are not warned of: an increment is then right to 0.4 %, a sum of them
#: better.
FEW_BITS = 8
#: Increments this much smaller than the largest of their system are rounding of the field.
NOISE = 2.0**-48
#: Motion over the whole run of no more than this share of a component is below the rounding of any float64.
OWN = 2.0**-53


def looks(first: int, last: int) -> int:
    """How many of the steps first <= n < last are looked at."""
    octaves = (k << s for s in range(2, max(3, last.bit_length())) for k in (2, 3))
    listed = {*range(EVERY_STEP_UNTIL), *(n // 2 for n in octaves)}
    return sum(first <= n < last for n in listed)


@dataclass
class Watch:
    """What was recorded.

    Args:
        zero: how many increments were not zero and rounded to zero, int64 tensors of the slots' shape.
        high: largest magnitude of an increment in grid units, int64 tensors of the slots' shape.
        increments: how many increments were looked at.
        sizes: of methods that keep two copies of y, the size of each system: what their distance is a share
            of.
        apart: the largest such share of any system.
        apart_at: the step after which that was.
    """

    zero: tuple[Tensor, Tensor]
    high: tuple[Tensor, Tensor]
    increments: int = 0
    sizes: Tensor | None = None
    apart: float = 0.0
    apart_at: int = -1

    @classmethod
    def of(cls, slots: tuple[Tensor, Tensor]) -> Watch:
        """Nothing recorded yet, for slots of these shapes."""
        return cls(
            *(
                tuple(torch.zeros(s.shape, dtype=torch.int64, device=s.device) for s in slots)
                for _ in range(2)
            )
        )

    def see(self, i: int, value: Tensor, gamma: float, fmt: StateFormat) -> None:
        """The increment ``gamma value`` of slot ``i``, ``value`` being in units of the scale and not yet
        rounded.
        """
        if not fmt.exact or not gamma:
            return
        size = (value.detach().double() * gamma).abs() * 2.0**fmt.frac_bits
        rounded = size.round()
        self.zero[i].add_((size > 0) & (rounded == 0))
        # A larger one is an overflow, reported by the step.
        held = torch.where(rounded < 2.0**62, rounded, 0.0)
        torch.maximum(self.high[i], held.to(torch.int64), out=self.high[i])
        self.increments += value.numel()

    def far(self, distance: Tensor, step: int | Tensor) -> None:
        """The distances of the copies, in the units of the equation, after a step: of each system, or of its
        elements.
        """
        if not distance.numel():
            return
        if distance.ndim > self.sizes.ndim:
            distance = distance.double().amax(tuple(range(self.sizes.ndim, distance.ndim))).nan_to_num(0.0)
        share = torch.where(self.sizes > 0, distance / self.sizes, torch.zeros_like(distance))
        where = int(share.argmax())
        if float(share.reshape(-1)[where]) > self.apart:
            self.apart = float(share.reshape(-1)[where])
            self.apart_at = int(step.reshape(-1)[where]) if isinstance(step, Tensor) else step

    def grow(self, slots: Any) -> None:
        """The state has become larger than it was at the start: ``slots``, float values or views of them, say
        so.
        """
        for x in slots:
            most = (
                x.detach().abs().double().reshape(*self.sizes.shape, -1).amax(-1)
                if x.numel()
                else 0.0 * self.sizes
            )
            self.sizes = torch.maximum(self.sizes, most.nan_to_num(0.0))

    def at_the_end(self, problem: Problem, final: Any) -> None:
        """The last step is looked at, wherever it is. Raises as :meth:`check_copies`."""
        if self.sizes is not None and problem.steps and final[0].numel():
            a, b = (problem.grid.view(i, s, torch.float64) for i, s in enumerate(final))
            self.grow((a, b))
            self.far((a - b).abs().reshape(*self.sizes.shape, -1), problem.last - 1)
            self.check_copies(problem)

    def check_copies(self, problem: Problem) -> None:
        """Raises ParasiticModeError where the copies are further apart than the method allows."""
        limit = problem.method.apart_limit
        if self.sizes is None or limit is None or not self.apart > limit:
            return
        raise ParasiticModeError(
            f"after step {self.apart_at} (t = {problem.time(self.apart_at + 1):.6g}) the two copies of y are"
            f" {self.apart:.3g} of the state's scale apart, more than {limit:g}, so that neither is the"
            f" solution: {problem.method.parasite(problem.equation)}",
            self.apart_at,
            self.apart,
            limit,
        )

    def to_stats(self, problem: Problem) -> dict[str, Any]:
        """As :class:`revstep.ode._solution.Stats` has it."""
        found: dict[str, Any] = {} if self.sizes is None else {"copies_apart": self.apart}
        if problem.grid.format.exact:
            found |= {
                "increment_bits": self.bits,
                "rounded_to_zero": self.rounded_to_zero,
                "looked_at": self.increments,
            }
        return found

    @property
    def rounded_to_zero(self) -> int:
        return sum(int(z.sum()) for z in self.zero)

    @property
    def bits(self) -> float | None:
        """Of the component with the smallest largest increment, among those that moved; None
        where none did.
        """
        moved = [h[h > 0] for h in self.high]
        least = min((int(m.min()) for m in moved if m.numel()), default=0)
        return math.log2(least) + 1 if least else None


def sizes(problem: Problem, start: Any, event_dims: int) -> Tensor:
    """The scale of each system, float64: its largest unit or start, over its trailing axes; zero where it has
    none.
    """
    found = torch.zeros(start[0].shape, dtype=torch.float64, device=start[0].device)
    for i, slot in enumerate(start):
        found = torch.maximum(found, problem.grid.view(i, slot, torch.float64).abs())
        if problem.grid.format.exact:
            found = torch.maximum(found, problem.grid.unit(i, slot))
    axes = tuple(range(found.ndim - event_dims, found.ndim))
    return found.amax(axes) if axes and found.numel() else found.sum(axes) if axes else found


def increments(problem: Problem, slots: Any, argument: Any, args: Any) -> tuple[Tensor, Tensor]:
    """The largest magnitudes of the increments of the last step, evaluated at these slots, in grid units, not
    rounded.
    """
    grid = problem.grid
    n = max(problem.first, problem.last - 1)
    views = [grid.view(i, s, problem.dtype) for i, s in enumerate(slots)]
    found = [torch.zeros(v.shape, dtype=torch.float64, device=v.device) for v in views]
    for m in problem.micros(n):
        x = views[1 - m.slot]
        if m.field != IDENTITY:
            t = scalar_on(x.device, problem.time(n, m.tau))
            x = problem.phi(m, argument(x), t, problem.h, args).detach()
        size = grid.into(m.slot, x).double().abs() * abs(m.gamma(problem.h)) * 2.0**grid.format.frac_bits
        found[m.slot] = torch.maximum(found[m.slot], size)
    return found[0], found[1]


@dataclass(frozen=True)
class _Judged:
    """One slot under judgement: masks over its elements."""

    still: Tensor  # never moved though it should have
    coarse: Tensor  # moved by few bits
    scale: Tensor  # the unit that helps


def rounded_away(problem: Problem, slots: Any, start: Any) -> tuple[Tensor, Tensor]:
    """Magnitudes of the elements of the start that a scale which was given rounds to zero; zero for all
    others.
    """
    if not problem.grid.format.exact or problem.grid.chosen:
        return tuple(torch.zeros(s.shape, dtype=torch.float64, device=s.device) for s in start)  # type: ignore[return-value]
    sizes = (x.detach().abs().double() for x in slots)
    return tuple(torch.where(s == 0, x, torch.zeros_like(x)) for x, s in zip(sizes, start))  # type: ignore[return-value]


def judge(
    problem: Problem, watch: Watch, start: Any, final: Any, sizes: Any, increments: Any, away: Any = None
) -> None:
    """Raise or warn where the grid was too coarse for a component.

    Args:
        start, final: the slots.
        sizes: the largest magnitudes seen of each slot's elements, in the units of the equation.
        increments: called without arguments only where something is suspicious: the increments of a step from
            the final slots, largest magnitude of each slot's elements, in grid units and not rounded.
        away: of :func:`rounded_away`; None: nothing.

    Raises:
        ResolutionError: a component never moved although its increments, not rounded, add up to motion; or
            its start rounded to zero, where it stayed.
    """
    grid = problem.grid
    if not grid.format.exact or not problem.steps:
        return
    away = away if away is not None else [torch.zeros_like(s, dtype=torch.float64) for s in start]
    resting = [(h == 0) & (a == b) for h, a, b in zip(watch.high, start, final)]
    gone = [r & (x > 0) for r, x in zip(resting, away)]
    silent = [r & (z > 0) for r, z in zip(resting, watch.zero)]
    coarse = [(h > 0) & (h < 2 ** (FEW_BITS - 1)) for h in watch.high]
    if not any(bool(m.any()) for m in (*silent, *coarse, *gone)):
        return
    exact = increments()
    found = []
    for i in (0, 1):
        unit = grid.unit(i, start[i])
        fits = 2.0 ** torch.ceil(torch.log2(4.0 * sizes[i].double() / grid.format.limit + 1e-300))
        wants = 2.0 ** torch.ceil(torch.log2(exact[i].double() + 1e-300)) * 2.0**-24 * unit
        helps = torch.maximum(fits, torch.clamp(wants, min=2.0**-200))
        lost = silent[i] & ~_noise(exact[i].double() * unit)
        # Below the rounding of any float64 nothing is lost.
        way = exact[i].double() * unit * 2.0**-grid.format.frac_bits * problem.steps
        lost &= way > OWN * sizes[i].double()
        helps = torch.where(gone[i], 2.0 ** torch.ceil(torch.log2(away[i] + 1e-300)).clamp(min=-200.0), helps)
        found.append(_Judged(lost | gone[i], coarse[i] & (helps <= unit / 4), torch.minimum(helps, unit)))
    _speak(problem, watch, found)


def _noise(moved: Tensor) -> Tensor:
    """Elements that move so little beside the others of their system that rounding of the field
    does as much.
    """
    if not moved.ndim or moved.shape[-1] == 1:
        return moved == 0
    return moved <= NOISE * moved.amax(-1, keepdim=True)


def _speak(problem: Problem, watch: Watch, found: list[_Judged]) -> None:
    names = problem.slot_names
    scales = [
        torch.where(f.still | f.coarse, f.scale, problem.grid.unit(i, f.scale)) for i, f in enumerate(found)
    ]
    if problem.slot_names[0] == problem.slot_names[1]:
        scales = [torch.minimum(*scales)]
    shown = [one if one is not None else s for one, s in zip(map(_units.one, scales), scales)]
    pairs = problem.grid.pairs
    advice, argument = _units.written(shown, pairs), _units.as_argument(shown, pairs)
    for i, f in enumerate(found):
        if bool(f.still.any()):
            where = _places(f.still, names[i])
            raise ResolutionError(
                f"{where} never moved in {problem.steps} steps: its start or every increment rounded to zero"
                f" on the grid of {_spacing(problem, i, f.still):.3g}, though they are not zero; pass"
                f" {advice}{_or_none(problem)}",
                argument,
            )
    told: set[str] = set()  # two slots of one quantity are one component to the caller
    for i, f in enumerate(found):
        if bool(f.coarse.any()) and names[i] not in told:
            told.add(names[i])
            bits = int(watch.high[i][f.coarse].min()).bit_length()
            more = advice.replace(
                "error.scale (error being this exception)", "warning.scale (warning being this one)"
            )
            warnings.warn(
                ResolutionWarning(
                    f"the increments of {_places(f.coarse, names[i])} have {bits} bits on the grid of"
                    f" {_spacing(problem, i, f.coarse):.3g}, fewer than {FEW_BITS}; pass {more} for"
                    f" more{_or_none(problem)}",
                    argument,
                ),
                stacklevel=5,
            )


def _or_none(problem: Problem) -> str:
    return "" if problem.grid.chosen else ", or leave scale out, so that it is chosen"


def _places(mask: Tensor, name: str) -> str:
    index = mask.nonzero().tolist()
    first = f"component {tuple(index[0])} of {name}" if mask.ndim else name
    return first if len(index) == 1 else f"{first} (and {len(index) - 1} more)"


def _spacing(problem: Problem, i: int, mask: Tensor) -> float:
    """The grid of the first of these components."""
    return float(problem.grid.unit(i, mask)[mask][0]) * 2.0**-problem.grid.format.frac_bits
