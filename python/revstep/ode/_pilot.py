"""What a field does at the start of a run: the sizes that its units are chosen from.

Euler steps of h, 2h, 4h, ... in NumPy, whatever the state is held in: on a state of a few numbers a run of
few steps would otherwise wait for this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._equations import FIRST, SECOND

#: A slope of less than this share of the next one does not say in which direction a component moved.
TURN = 2.0**-4
#: Units go from 1 / LARGEST to LARGEST.
LARGEST = 2.0**190


@dataclass(frozen=True)
class Sizes:
    """What the pilot saw of each element of both slots, (2, ...) in float64.

    Args:
        top: largest magnitude.
        moved: largest magnitude of an increment over one step of h.
    """

    top: np.ndarray
    moved: np.ndarray


def pilot(
    equation: str,
    functions: Sequence[Callable[..., Tensor]],
    parts: Sequence[Tensor],
    slots: int | None,
    times: Callable[[float], Tensor],
    h: float,
    steps: int,
    args: Sequence[Any],
) -> Callable[[bool], Sizes]:
    """Sizes along Euler steps of h, 2h, 4h, ... from the start.

    Args:
        parts: ``(y,)``, ``(q, v)`` or ``(q, p)`` at the start, in floats.
        slots: None where the two slots hold the two parts; else the part that both hold.
        times: the time after so many steps, as the field sees it.
    """
    run = _Pilot(equation, functions, parts, times, h, steps, args)

    def sizes(all_of_it: bool) -> Sizes:
        run.go(all_of_it)
        if slots is None and len(parts) == 2:
            return Sizes(run.tops, run.moves)
        part = slots or 0
        return Sizes(*(np.broadcast_to(both[part], (2, *both.shape[1:])) for both in (run.tops, run.moves)))

    return sizes


def numbers(x: Tensor) -> np.ndarray:
    """The values of a tensor in float64, on the host; may share its memory."""
    return x.detach().double().cpu().numpy()


class _Pilot:
    """All parts in one array, (parts, ...)."""

    def __init__(self, equation, functions, parts, times, h, steps, args):
        self.equation = equation
        self.functions = functions
        self.times = times
        self.args = args
        self.h = h
        self.steps = steps
        self.like = parts[0]
        self.xs = np.stack([numbers(p) for p in parts])
        self.tops, self.moves = np.abs(self.xs), np.zeros_like(self.xs)
        self.before: np.ndarray | None = None
        self.going = np.ones(self.xs.shape[1:], dtype=bool)
        self.done = 0
        self.stride = 1
        self.over = steps == 0

    def go(self, all_of_it: bool) -> None:
        # In the caller's grad mode: a field that keeps what it computes at its first call keeps its graph
        # too.
        while not self.over and (all_of_it or self.done == 0):
            self._step()

    def _asked(self, function: int, part: int) -> np.ndarray:
        # A field may write into it.
        x = torch.tensor(self.xs[part], dtype=self.like.dtype, device=self.like.device)
        return numbers(self.functions[function](self.times(float(self.done)), x, *self.args))

    def _slopes(self) -> np.ndarray:
        if self.equation == FIRST:
            return self._asked(0, 0)[None].copy()  # a field may use its buffer again
        if self.equation == SECOND:
            return np.stack([self.xs[1], self._asked(0, 0)])
        first = self._asked(0, 1).copy()
        return np.stack([first, self._asked(1, 0)])

    def _step(self) -> None:
        try:
            slopes = self._slopes()
        except (
            Exception
        ):  # beyond the field's domain, or a field that is wrong: the run itself says so, and where
            self.over = True
            return
        with np.errstate(all="ignore"):
            self._move(slopes)

    def _move(self, slopes: np.ndarray) -> None:
        if self.before is not None:
            back = (self.before * slopes < 0) & (np.abs(self.before) > TURN * np.abs(slopes))
            on = (~back & np.isfinite(slopes)).all(0)
            if self.equation == FIRST and on.ndim:  # what one component did says when the others will turn
                on = on.all(-1, keepdims=True)
            self.going = self.going & on
        stride = min(self.stride, self.steps - self.done)
        on = np.where(self.going, slopes, 0.0)
        self.xs = self.xs + (self.h * stride) * on
        self.moves = np.maximum(self.moves, _finite(np.abs(on * self.h)))
        self.tops = np.maximum(self.tops, _finite(np.abs(self.xs)))
        self.before = slopes
        self.done += stride
        self.stride *= 2
        huge = self.tops.max() > math.sqrt(LARGEST) * LARGEST
        self.over = bool(self.done >= self.steps or huge or not self.going.any())


def _finite(x: np.ndarray) -> np.ndarray:
    """Magnitudes; 0 for what is none."""
    return np.where(x <= np.finfo(np.float64).max, x, 0.0)
