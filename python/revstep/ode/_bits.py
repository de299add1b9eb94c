"""The slots of a run at one of its ends, and a run that goes on from them to the bit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from . import _starts, _times
from ._equations import FIRST, WRITTEN


class Bits(tuple):
    """The two slots of a run at one of its ends, as they are held, with all that is needed to go on from
    there.

    A tuple of two tensors; ``integrate(field, None, start=solution.final, steps=...)`` continues to the bit.

    Args:
        slots: the two tensors.
        problem: whose slots they are.
        form: of the caller's y0.
        step: the number of the step at which they are.
        failed: the members that the run dropped, by index: the steps.
    """

    step: int
    failed: dict[tuple[int, ...], int] = {}  # noqa: RUF012  (pickles of 0.1.0 have none)
    h: float
    grid: Any
    method: Any

    def __new__(
        cls, slots: tuple[Tensor, Tensor], problem: Any, form: _starts.Start, step: int,
        failed: dict[tuple[int, ...], int],
    ) -> Bits:  # fmt: skip
        made = super().__new__(cls, slots)
        made.__dict__.update(
            step=step,
            failed=failed,
            method=problem.method,
            equation=problem.equation,
            grid=problem.grid,
            h=problem.h,
            t0=problem.t0,
            dtype=problem.dtype,
            from_numpy=form.from_numpy,
            complex=form.complex,
        )
        return made

    def __reduce__(self) -> tuple:
        return _restored, (tuple(self), self.__dict__)

    @property
    def t(self) -> float:
        """The time at which they are."""
        return self.t0 + self.step * self.h

    def form(self, y0: Any) -> _starts.Start:
        """The form of the start they came from; ``y0``, where it is given, says only whether
        NumPy or torch.
        """
        values = [self.grid.view(i, slot, self.dtype) for i, slot in enumerate(self)]
        parts = (values[0],) if self.equation == FIRST else tuple(values)
        own = _starts.Start(parts, self.equation != FIRST, self.from_numpy, self.complex)
        if y0 is None:
            return own
        given = _starts.read(y0)
        if given.shape != own.shape or given.pair != own.pair or given.complex != own.complex:
            raise ConfigError(
                f"y0 has shape {given.shape}, but start holds slots of shape {own.shape} of"
                f" {WRITTEN[self.equation]}: leave y0 out (None), the start is taken from the slots"
            )
        return _starts.Start(parts, own.pair, given.from_numpy, own.complex)

    def span(self, h: Any, steps: Any, t0: Any, t1: Any, t_span: Any) -> tuple[float, int, float]:
        """``(h, steps, t0)`` of the run that goes on, t0 being the time of its step 0, as in the run before.

        Raises:
            ConfigError: another h, or a start at another time.
        """
        if t_span is not None:
            t0, t1 = t_span
        if h is not None and _times.number("h", h) != self.h:
            raise ConfigError(
                f"h is {_times.number('h', h)}, but the run that start comes from has h = {self.h}: leave"
                " h out"
            )
        given = _times.number("t0", t0)
        slack = 4 * _times.EPS * max(abs(self.t), abs(self.t0))
        if given not in (0.0, self.t0) and abs(given - self.t) > slack:
            raise ConfigError(f"t0 is {given}, but start is at t = {self.t}: leave t0 out")
        if t1 is not None:
            _, counted, _ = _times.span(self.h, steps, self.t, t1, None)
            steps = counted
        if steps is None:
            raise ConfigError("steps is None and no end is given: expected how many steps to go on")
        return self.h, _times.whole("steps", steps), self.t0

    def check(self, method: Any, equation: str, state: Any, scale: Any) -> None:
        """Raises ConfigError where the run that goes on differs from the one before in what the
        slots mean.
        """
        if equation != self.equation:
            raise ConfigError(
                f"start holds slots of {WRITTEN[self.equation]}, but the field is of {WRITTEN[equation]}"
            )
        if method != self.method:
            raise ConfigError(
                f"the method is {method.name}, but start comes from a run of {self.method.name}: leave"
                " scheme out"
            )
        if state is not None and state != self.grid.format:
            raise ConfigError(f"state is {state}, but start is held in {self.grid.format}: leave state out")
        if self.failed:
            raise ConfigError(
                f"the run that start comes from dropped {len(self.failed)} of its members, of which nothing"
                " is left to go on from: give the others as y0, solution.ys[-1] of those that are not in"
                " solution.failed"
            )
        if scale is not None:
            raise ConfigError("scale is given, but start has its scales already: leave scale out")

    def slots(self) -> tuple[Tensor, Tensor]:
        """Copies of the two tensors."""
        return self[0].clone(), self[1].clone()

    def values(self) -> tuple[Tensor, Tensor]:
        """Their float values."""
        with torch.no_grad():
            return tuple(self.grid.view(i, slot, self.dtype) for i, slot in enumerate(self))  # type: ignore[return-value]


def _restored(slots: tuple[Tensor, Tensor], known: dict[str, Any]) -> Bits:
    made = tuple.__new__(Bits, slots)
    made.__dict__.update(known)
    return made
