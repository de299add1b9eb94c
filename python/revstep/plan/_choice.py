"""The frontier of a plan: every way to train at the plan's batch, with its predicted peak and time, and the
fastest of those that fit a budget.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .._options import StackOptions
from .._values import size
from ..errors import ConfigError

#: What tiles add to the time of a step that rebuilds all its layers, beside plain's: the counted operations
#: are the same. Measured on a CPU with 256 tokens a tile, docs/benchmarks/frontier.md.
BY_TILES = 0.04


@dataclass(frozen=True)
class Point:
    """One way to train at the plan's batch.

    Attributes:
        mode: plain, checkpointed or reversible.
        chunked: with the chunked loss.
        keep: layers at the end whose graphs are kept (reversible).
        tile: tokens of a tile of the MLPs of the layers that are rebuilt (reversible); None: whole.
        fused_step: the optimiser steps inside backward.
        peak: predicted bytes of the whole step, weights and optimiser state among them.
        moment: when they are reached.
        step_time: predicted time beside plain's.
    """

    mode: str
    chunked: bool
    keep: int
    tile: int | None
    fused_step: bool
    peak: float
    moment: str
    step_time: float

    def options(self, scheme: object, **more: object) -> StackOptions:
        """For ``ReversibleStack`` and ``hf.convert``: this point's ``keep`` and ``tile``, with a scheme.

        Args:
            scheme: as :class:`~revstep.StackOptions` takes it.
            more: further options of it.

        Raises:
            ConfigError: the point is plain or checkpointed, which no stack runs.
        """
        if self.mode != "reversible":
            raise ConfigError(f"the point is {self.mode}, expected a reversible one: no stack runs it")
        return StackOptions(scheme=scheme, keep=self.keep, tile=self.tile, **more)  # type: ignore[arg-type]

    def __str__(self) -> str:
        words = [self.mode]
        if self.mode == "reversible":
            words.append(f"keep={self.keep}" + (f", tiles of {self.tile}" if self.tile else ""))
        if self.fused_step:
            words.append("fused step")
        return ", ".join(words)


def fastest(points: Iterable[Point], budget: float) -> Point | None:
    """The one with the least predicted time of those whose peak is at most ``budget`` bytes; None where none
    fits. Of points as fast as each other: without a fused step before with one, whole before tiles and large
    tiles before small ones, then the smaller peak.
    """
    fitting = [p for p in points if p.peak <= budget]
    return min(fitting, key=_rank, default=None)


def _rank(p: Point) -> tuple:
    return (round(p.step_time, 9), p.fused_step, p.tile is not None, -(p.tile or 0), p.peak)


def nothing_fits(points: Iterable[Point], budget: float, batch: int) -> str:
    """A sentence: the least that is needed, by which way, beside the budget."""
    least = min(points, key=lambda p: p.peak)
    return (
        f"a step of batch {batch} needs {size(least.peak)} at least, with {least} (at the {least.moment});"
        f" budget {size(budget)}, short of {size(least.peak - budget)}"
    )
