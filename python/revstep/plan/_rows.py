"""The rows of a plan and the points of its frontier: peak, largest batch, kept layers and time of each way to
train.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ._choice import BY_TILES, Point
from ._modes import MODES, Reversible, Static, peak
from ._probe import Probe, Sample


@dataclass(frozen=True)
class Row:
    """One way to train: bytes a GPU at the plan's batch, and how far the memory goes.

    Attributes:
        mode: plain, checkpointed (every layer recomputed from its input) or reversible.
        chunked: with the chunked loss.
        parameters: what a GPU holds of them.
        gradients: what a GPU holds of them.
        optimizer: its state.
        engine: DDP's buckets, FSDP's gathered layers.
        activations: saved tensors of the layers, their checkpoints, or the graphs of kept layers, when the
            loss is computed.
        states: two states, carries and checksums.
        block: the largest layer's graph.
        head: vocabulary head and loss, with their gradients.
        outside: embedding output, rotary tables, masks.
        peak: largest sum of what is alive at one moment (not the sum of the columns).
        moment: which moment that is.
        largest_batch: sequences a GPU that fit (between powers of two by interpolation, never too many); None
            without ``memory``.
        short: bytes missing for one sequence, 0 if it fits.
        step_time: predicted time of a step at the same batch beside plain's.
        keep: layers whose graph can be kept in the memory at the plan's batch (reversible, with ``memory``).
        keep_step_time: the time of a step with them.
    """

    mode: str
    chunked: bool
    parameters: float
    gradients: float
    optimizer: float
    engine: float
    activations: float
    states: float
    block: float
    head: float
    outside: float
    peak: float
    moment: str
    largest_batch: int | None
    short: float
    step_time: float
    keep: int | None = None
    keep_step_time: float | None = None


class Rows:
    """Rows and points of one plan, from one probe."""

    def __init__(
        self,
        probe: Probe,
        fixed: Static,
        bits: tuple[int, ...],
        state_bytes: int,
        memory: int | None,
        batch: int,
        accumulate: bool,
        offload: bool = False,
    ):
        self.probe = probe
        self.fixed = fixed
        self.bits = bits
        self.state_bytes = state_bytes
        self.memory = memory
        self.batch = batch
        self.accumulate = accumulate
        self.offload = offload

    def row(self, mode: str, chunked: bool) -> Row:
        sample = self.probe.at(self.batch)
        at = peak(mode, sample, self.fixed, self._rev(0), chunked, self.accumulate)
        largest = (
            None
            if self.memory is None
            else largest_batch(lambda b: self._peak(mode, b, chunked), self.memory)
        )
        short = 0.0 if largest is None or largest else self._peak(mode, 1, chunked) - self.memory
        depth = len(sample.layers)
        keep = None
        if mode == "reversible" and self.memory is not None and at.peak <= self.memory:
            keep = max(k for k in range(depth + 1) if self._peak(mode, self.batch, chunked, k) <= self.memory)
        fixed = self.fixed
        return Row(
            mode,
            chunked,
            fixed.parameters + fixed.buffers,
            fixed.gradients,
            fixed.optimizer,
            fixed.engine,
            at.activations,
            at.states,
            at.block,
            at.head,
            at.outside,
            at.peak,
            at.moment,
            largest,
            short,
            step_time(sample, 0 if mode == "plain" else depth),
            keep,
            None if keep is None else step_time(sample, depth - keep),
        )

    def points(
        self, chunked: bool, ends: Sequence[tuple[bool, Static]], tiles: Sequence[int | None]
    ) -> tuple[Point, ...]:
        """Every way at the plan's batch.

        Args:
            ends: (whether the optimiser steps inside backward, what is then held whatever the batch).
            tiles: of the reversible ways; None: whole.
        """
        return tuple(
            point
            for fused, fixed in ends
            for mode in MODES
            for tile in (tiles if mode == "reversible" else (None,))
            for point in self._points(mode, chunked, tile, fused, fixed)
        )

    def _points(
        self, mode: str, chunked: bool, tile: int | None, fused: bool, fixed: Static
    ) -> Iterator[Point]:
        sample = self.probe.at(self.batch, tile)
        depth = len(sample.layers)
        for keep in range(depth + 1) if mode == "reversible" else (0,):
            at = peak(mode, sample, fixed, self._rev(keep), chunked, self.accumulate)
            again = 0 if mode == "plain" else depth - keep
            time = step_time(sample, again) + (BY_TILES * again / depth if tile else 0.0)
            yield Point(mode, chunked, keep, tile, fused, at.peak, at.moment, time)

    def _rev(self, keep: int) -> Reversible:
        return Reversible(self.state_bytes, self.bits, keep, self.offload)

    def _peak(self, mode: str, batch: int, chunked: bool, keep: int = 0) -> float:
        sample = self.probe.at(batch) if batch == self.batch else self.probe.near(batch)
        return peak(mode, sample, self.fixed, self._rev(keep), chunked, self.accumulate).peak


def step_time(sample: Sample, again: int) -> float:
    """(forward + backward + the forward pass of the first ``again`` layers once more) / (forward + backward),
    in operations of matrix products and attention. A prediction: memory-bound operations, kernels and the
    recurrence's own step (a few bytes an element) are not in it."""
    plain = sum(sample.operations) + sum(sum(layer.operations) for layer in sample.layers)
    return 1 + sum(layer.operations[0] for layer in sample.layers[:again]) / plain


def largest_batch(needed: Callable[[int], float], memory: float) -> int:
    """The largest whole number with ``needed(batch) <= memory``, ``needed`` growing nearly in proportion; 0
    if there is none.
    """
    if needed(1) > memory:
        return 0
    # 8: nearly every search asks it, and answers are remembered.
    fits = 1
    fails = math.inf
    low = needed(1)
    guess = 8
    while fails - fits > 1:
        level = needed(guess)
        slope = max((level - low) / (guess - fits), 1.0)
        if level <= memory:
            fits, low = guess, level
        else:
            fails = guess
        # Secant; it verifies its own answer and the next one.
        guess = fits + max(1, min(int((memory - low) / slope), 64 * fits))
        if guess >= fails:
            guess = max(fits + 1, int(fails) - 1) if guess == fails else (fits + int(fails)) // 2
    return fits
