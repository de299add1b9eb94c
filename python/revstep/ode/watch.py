"""What the grid did to a run: increments that rounded to zero, the bits of those that did not, the distance of two copies.

It is seen on some of the steps, the same ones in both loops, and judged when the run is over: a component that
should have moved and never did is an error, one whose increments have few bits where another unit would give more
is a warning.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..errors import ResolutionError, ResolutionWarning
from . import units
from .problem import Problem

#: The first steps are looked at, and every so many after them, so that looking costs next to nothing.
FIRST, EVERY = 16, 256
#: Increments of at least this many bits are not warned of: an increment is then right to 0.4 %, a sum of them better.
FEW_BITS = 8
#: A component is said to have lost its motion when increments that rounded to zero add up to this many grid units.
LOST = 4.0


def looked_at(n: int) -> bool:
    """Whether step ``n`` is one of those that are looked at."""
    return n < FIRST or n % EVERY == 0


def looks(first: int, last: int) -> int:
    """How many of the steps first <= n < last are looked at."""
    head = max(0, min(last, FIRST) - first)
    low = max(first, FIRST)
    return head + max(0, (last - 1) // EVERY - (low - 1) // EVERY) if last > low else head


@dataclass
class Watch:
    """What was recorded, per element of each slot.

    Args:
        zero: how many increments were not zero and rounded to zero, int64 tensors.
        high: largest magnitude of an increment in grid units, int64 tensors.
        apart: largest distance of two copies of y, in units of the scale; one number a system of the batch.
        apart_at: the step after which that was.
        limits: the share of the scale at which the copies are too far apart; inf where there are no copies.
    """

    zero: tuple[Tensor, Tensor]
    high: tuple[Tensor, Tensor]
    apart: float = 0.0
    apart_at: int = -1
    increments: int = 0
    _shown: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, slots: tuple[Tensor, Tensor]) -> Watch:
        """Nothing recorded yet, for slots of these shapes."""
        return cls(*(tuple(torch.zeros(s.shape, dtype=torch.int64, device=s.device) for s in slots) for _ in range(2)))

    def see(self, i: int, increment: Tensor) -> None:
        """An increment of slot ``i``, in grid units and not yet rounded."""
        size = increment.abs().double()
        rounded = size.round()
        self.zero[i].add_((size > 0) & (rounded == 0))
        kept = torch.where(rounded < 2.0**62, rounded, 0.0)  # a larger one is an overflow, reported by the step
        torch.maximum(self.high[i], kept.to(torch.int64), out=self.high[i])
        self.increments += increment.numel()

    def far(self, n: int, distance: float) -> None:
        """The distance of the copies after step ``n``."""
        if distance > self.apart:
            self.apart, self.apart_at = distance, n

    @property
    def rounded_to_zero(self) -> int:
        return sum(int(z.sum()) for z in self.zero)

    @property
    def bits(self) -> float | None:
        """Of the component with the smallest largest increment, among those that moved; None where none did."""
        moved = [h[h > 0] for h in self.high]
        least = min((int(m.min()) for m in moved if m.numel()), default=0)
        return math.log2(least) + 1 if least else None


@dataclass(frozen=True)
class _Judged:
    """One slot under judgement: masks over its elements."""

    still: Tensor  # never moved though it should have
    coarse: Tensor  # moved by few bits
    scale: Tensor  # the unit that helps


def judge(problem: Problem, watch: Watch, start: Any, final: Any, sizes: Any, increments: Any) -> None:
    """Raise or warn where the grid was too coarse for a component.

    Args:
        start, final: the slots.
        sizes: the largest magnitudes seen of each slot's elements, in the units of the equation.
        increments: called without arguments only where something is suspicious: the increments of a step from the
            final slots, largest magnitude of each slot's elements, in grid units and not rounded.

    Raises:
        ResolutionError: a component never moved although its increments, not rounded, add up to motion.
    """
    grid = problem.grid
    if not grid.format.exact or not problem.steps:
        return
    silent = [(h == 0) & (z > 0) & (a == b) for h, z, a, b in zip(watch.high, watch.zero, start, final)]
    coarse = [(h > 0) & (h < 2**FEW_BITS) for h in watch.high]
    if not any(bool(m.any()) for m in (*silent, *coarse)):
        return
    exact = increments()
    found = []
    for i in (0, 1):
        unit = grid.unit(i, start[i])
        fits = 2.0 ** torch.ceil(torch.log2(4.0 * sizes[i].double() / grid.format.limit + 1e-300))
        wants = 2.0 ** torch.ceil(torch.log2(exact[i].double() + 1e-300)) * 2.0**-24 * unit
        helps = torch.maximum(fits, torch.clamp(wants, min=2.0**-200))
        lost = silent[i] & (exact[i].double() * problem.steps >= LOST)
        found.append(_Judged(lost, coarse[i] & (helps <= unit / 4), torch.minimum(helps, unit)))
    _speak(problem, watch, found)


def _speak(problem: Problem, watch: Watch, found: list[_Judged]) -> None:
    names = problem.slot_names
    scales = [torch.where(f.still | f.coarse, f.scale, problem.grid.unit(i, f.scale)) for i, f in enumerate(found)]
    if problem.slot_names[0] == problem.slot_names[1]:
        scales = [torch.minimum(*scales)]
    shown = [one if one is not None else s for one, s in zip(map(units.one, scales), scales)]
    pairs = problem.grid.pairs
    advice, argument = units.written(shown, pairs), units.as_argument(shown, pairs)
    for i, f in enumerate(found):
        if bool(f.still.any()):
            where = _places(f.still, names[i])
            raise ResolutionError(
                f"{where} never moved in {problem.steps} steps: every increment rounded to zero on the grid of "
                f"{_spacing(problem, i, f.still):.3g}, though they are not zero; pass {advice}, or leave scale out",
                argument,
            )
    for i, f in enumerate(found):
        if bool(f.coarse.any()):
            bits = int(watch.high[i][f.coarse].min()).bit_length()
            warnings.warn(
                f"the increments of {_places(f.coarse, names[i])} have {bits} bits on the grid of "
                f"{_spacing(problem, i, f.coarse):.3g}, fewer than {FEW_BITS}; pass {advice} for more, "
                "or leave scale out",
                ResolutionWarning, stacklevel=5,
            )  # fmt: skip


def _places(mask: Tensor, name: str) -> str:
    index = mask.nonzero().tolist()
    first = f"component {tuple(index[0])} of {name}" if mask.ndim else name
    return first if len(index) == 1 else f"{first} (and {len(index) - 1} more)"


def _spacing(problem: Problem, i: int, mask: Tensor) -> float:
    """The grid of the first of these components."""
    return float(problem.grid.unit(i, mask)[mask][0]) * 2.0**-problem.grid.format.frac_bits
