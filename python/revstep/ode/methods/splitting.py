"""Splitting methods and symmetric compositions on two streams (data: :mod:`revstep.ode.compositions`)."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...schemes import Claims
from ..compositions import Composition, Splitting
from ..equations import FIRST, SECOND, SEPARABLE
from .base import IDENTITY, F, G, Method, Micro, Slots


@dataclass(frozen=True)
class SplittingMethod(Method):
    """``A(a_1 h) B(b_1 h) A(a_2 h) ... A(a_{m+1} h)``: A moves slot 0 by the first function of slot 1, B slot 1 by the second of slot 0.

    - q' = F(t, p), p' = G(t, q): slots (q, p); drift, kick, ..., drift.
    - q'' = f(t, q): slots (q, v), drifts are free.
    - y' = f(t, y): the doubled system u' = f(t, v), v' = f(t, u), u = v = y0 at the start, read out as (u + v)/2; both
      functions are f. Not symplectic in y; for the product of the doubled system see Pihajoki (2015), Tao (2016).

    Each stream carries its own clock: F sees the time its argument p has reached, G that of q, which keeps the order of
    the method on non-autonomous fields. The last drift of a step and the first of the next share one evaluation.
    """

    data: Composition | Splitting

    equations = (FIRST, SECOND, SEPARABLE)
    apart_limit = 2.0**-3

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.data.name

    def claims(self, equation: str) -> Claims:
        m = self.data.stages
        evaluations = m if equation == SECOND else 2 * m
        return Claims(
            equation=equation, order=self.data.order, symmetric=True, symplectic=equation != FIRST, evaluations=evaluations,
            stability="|trace| <= 2 of the step on the oscillator, both ways", source=self.data.source,
        )  # fmt: skip

    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        return _micros(self.data, equation)

    def copies(self, equation: str) -> bool:
        return equation == FIRST

    def parasite(self, equation: str) -> str | None:
        if equation != FIRST:
            return None
        return (
            f"{self.name} on y' = f keeps two copies u and v of the state, whose difference grows where the flow contracts: "
            "take ode.ReversibleRK('dopri5', lam=0.5), or a smaller h"
        )

    def begin(self, equation: str, y0: Any, h: Any) -> Slots:
        return (y0, y0) if equation == FIRST else (y0[0], y0[1])

    def read(self, equation: str, n: int, slots: Slots, t: Any, h: Any, f: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return ((slots[0] + slots[1]) * 0.5,) if equation == FIRST else slots


@functools.lru_cache(maxsize=256)
def _micros(data: Composition | Splitting, equation: str) -> tuple[Micro, ...]:
    first, second = {FIRST: (F, F), SECOND: (IDENTITY, F), SEPARABLE: (F, G)}[equation]
    a, b = data.full_a(), data.full_b()
    out, clocks = [], [0.0, 0.0]  # how far slot 0 and slot 1 have come, in h

    def move(slot: int, c: float, field: int) -> None:
        out.append(Micro(slot, 1.0, 0.0, c, 1, field, clocks[1 - slot]))
        clocks[slot] += c

    for i in range(len(b)):
        move(0, a[i], first)
        move(1, b[i], second)
    clocks[1] = 1.0  # exactly, so that the next step's first drift is this one's last
    move(0, a[-1], first)
    return tuple(out)
