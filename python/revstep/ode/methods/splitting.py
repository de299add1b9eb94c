"""Splitting methods and symmetric compositions on two streams (data: :mod:`revstep.ode.compositions`)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ... import ops
from ...errors import ConfigError
from ...schemes import Claims
from ...schemes._base import finite, reversible
from .._equations import FIRST, SECOND, SEPARABLE
from ..compositions import Composition, Splitting
from ._base import IDENTITY, F, G, Method, Micro, Slots


@dataclass(frozen=True)
class SplittingMethod(Method):
    """``A(a_1 h) B(b_1 h) A(a_2 h) ... A(a_{m+1} h)``: A moves slot 0 by the first function of slot 1, B slot
    1 by the second of slot 0.

    - q' = F(t, p), p' = G(t, q): slots (q, p); drift, kick, ..., drift.
    - q'' = f(t, q): slots (q, v), drifts are free.
    - y' = f(t, y): the doubled system u' = f(t, v), v' = f(t, u), u = v = y0 at the start, read out as (u +
    v)/2; both
      functions are f. Not symplectic in y; for the product of the doubled system see Pihajoki (2015), Tao
      (2016).

    The difference d = u - v of the two copies obeys d' = -J d, J being the derivative of f: it grows where
    the flow contracts, and with it an error that no smaller step removes. So on y' = f each step ends by
    drawing the copies together, ``u <- (1 - a) u + a v, v <- (1 - b) v + b u`` with a = couple/2 and b =
    a/(1 - a), which multiplies d by 1 - couple and keeps the mean (to 2**-26 d, for the numbers are snapped
    to 2**-24). The order stays: a step from equal copies sets them O(h**(p+1)) apart, and only their mean
    is read. The price is an evaluation and two carry bits an element and step (for couple <= 2/3), and the
    time symmetry, which fails by O(h**(2p+2)) in the mean; float states amplify by 1/(1 - couple) a step
    when undone. ``couple=0`` is the bare doubled system: time-symmetric, without carries, and wrong where
    the flow contracts for long.

    Each stream carries its own clock: F sees the time its argument p has reached, G that of q, which keeps
    the order of the method on non-autonomous fields. The last drift of a step and the first of the next share
    one evaluation, but for coupled copies.

    Args:
        data: the coefficients.
        couple: on y' = f only, the share of the difference of the copies that each step takes away, 0 <=
            couple < 1; snapped so that a is a multiple of 2**-24. The default was measured:
            docs/decisions/0014-second-solutions.md.

    Raises:
        ConfigError: a couple outside its range, or so near 1 that the step could not be undone.
    """

    data: Composition | Splitting
    couple: float = 0.5

    equations = (FIRST, SECOND, SEPARABLE)
    apart_limit = 1.0

    def __post_init__(self) -> None:
        couple = finite("SplittingMethod couple", self.couple, nonzero=False)
        if not 0 <= couple < 1:
            expected = "expected 0 (the copies are left alone) to less than 1"
            raise ConfigError(f"SplittingMethod couple = {couple}: {expected}")
        couple = 2 * ops.snap(couple / 2)
        if couple:
            reversible("SplittingMethod couple's weight of v", 1 - _weights(couple)[1])
        object.__setattr__(self, "couple", couple)

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.data.name

    def claims(self, equation: str) -> Claims:
        m = self.data.stages
        coupled = equation == FIRST and self.couple > 0
        return Claims(
            equation=equation, order=self.data.order, symmetric=not coupled, symplectic=equation != FIRST,
            evaluations=m if equation == SECOND else 2 * m + coupled, source=self.data.source, even=coupled,
            stability=(
                f"y' = lambda y, Re lambda < 0: h |lambda| <= {-math.log1p(-self.couple):.2g}, or less"
                if coupled else "|trace| <= 2 of the step on the oscillator, both ways"
            ),
        )  # fmt: skip

    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        return _micros(self.data, equation, self.couple if equation == FIRST else 0.0)

    def begin(self, equation: str, y0: Any, h: Any) -> Slots:
        return (y0, y0) if equation == FIRST else (y0[0], y0[1])

    def copies(self, equation: str) -> bool:
        return equation == FIRST

    def parasite(self, equation: str) -> str | None:
        if equation != FIRST:
            return None
        what = (
            f"{self.name} on y' = f keeps two copies u and v of the state, whose difference grows where the"
            " flow contracts"
        )
        if not self.couple:
            remedy = "take the default couple, or ode.ReversibleRK('dopri5', lam=0.5)"
            return f"{what}, and couple = 0 leaves them alone: {remedy}"
        return (
            f"{what}; each step takes away {self.couple:.3g} of it, which is less than it grows by in a step"
            " of this size: take a smaller h, a couple nearer to 1, or 'blend' if order 1 will do"
        )

    def read(
        self, equation: str, n: int, slots: Slots, t: Any, h: Any, f: Callable[..., Tensor]
    ) -> tuple[Tensor, ...]:
        return ((slots[0] + slots[1]) * 0.5,) if equation == FIRST else slots


def _weights(couple: float) -> tuple[float, float]:
    """a and b of the two micro-steps that multiply the difference of the copies by 1 - couple and keep
    their mean.
    """
    a = couple / 2
    return a, ops.snap(a / (1 - a))


@functools.lru_cache(maxsize=256)
def _micros(data: Composition | Splitting, equation: str, couple: float) -> tuple[Micro, ...]:
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
    if couple:  # both copies are at the end of the step now; without a field, gamma is 0
        out += [Micro(slot, 1.0 - c, c, 0.0, 1, IDENTITY, 1.0) for slot, c in enumerate(_weights(couple))]
    return tuple(out)
