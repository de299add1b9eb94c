"""The registered schemes as ODE methods: :class:`TwoStep` and :class:`SymplecticEuler`. The coefficients stay
the schemes' own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from ...errors import ConfigError
from ...schemes import Claims, Coefficients, Scheme
from .._equations import FIRST, SECOND, SEPARABLE
from ._base import IDENTITY, F, G, Method, Micro, Slots

#: A scheme's own way of writing its equation -> our kinds.
_KIND = {"y' = f(y)": (FIRST,), "y'' = f(y)": (SECOND,), "q' = F(p), p' = G(q)": (SEPARABLE, SECOND)}


@functools.lru_cache(maxsize=16)
def _with(scheme: Scheme, h: float) -> Scheme:
    """Kept, for every step asks, and a scheme with numbers of its own a step reads all of them when it is
    made.
    """
    return dataclasses.replace(scheme, h=h)


def _powers(scheme: Scheme, coefficients: Callable[[Scheme], Coefficients]) -> tuple[float, int]:
    """gamma = c h**k read off the scheme itself: its value at h = 1 and h = 2."""
    one, two = (coefficients(_with(scheme, h)).gamma for h in (1.0, 2.0))
    for k in (1, 2):
        if two == one * 2.0**k:
            return one, k
    raise ConfigError(f"{scheme.name}: gamma is {one} at h = 1 and {two} at h = 2, expected c h or c h**2")


def _fresh(scheme: Scheme) -> Scheme:
    return dataclasses.replace(scheme, h=1.0)


@dataclasses.dataclass(frozen=True)
class TwoStep(Method):
    """A two-step scheme (Midpoint, Blend, MidpointBlend; Leapfrog on q'' = f) as a method: one micro-step a
    step.

    Slot (n+1) % 2 holds y_n, slot n % 2 holds y_{n-1} and becomes y_{n+1}. Step 0 is the scheme's one-step
    start: both slots are y0 (Leapfrog: slot 0 is q0 + h v0), ``start="repeat"`` takes the two-step rule at
    once, which costs an order. Velocities of Leapfrog: ``v_n = (q_n - q_{n-1})/h + h/2 f(t_n, q_n)``, the
    central difference in exact arithmetic.
    """

    scheme: Scheme
    start: str = "euler"

    rotations: ClassVar[bool] = (
        False  # the second solution is as large as the start's error, and nothing damps it there
    )

    def __post_init__(self) -> None:
        if self.start not in self.scheme.starts:
            raise ConfigError(
                f"start is {self.start!r}, {self.scheme.name} knows"
                f" {', '.join(map(repr, self.scheme.starts))}"
            )
        object.__setattr__(self, "scheme", _fresh(self.scheme))
        a = getattr(self.scheme, "a", None)
        object.__setattr__(self, "name", self.scheme.name)
        object.__setattr__(self, "period", None if a == "paper" or isinstance(a, tuple) else 2)
        object.__setattr__(self, "equations", _KIND[self.scheme.claims.equation])

    def claims(self, equation: str) -> Claims:
        return self.scheme.claims

    def reach(self, equation: str) -> tuple[float, float]:
        """Every step asks the field at its own time alone."""
        return 0.0, 1.0

    def parasite(self, equation: str) -> str | None:
        """Not watched as a distance of copies: the slots are y at neighbouring times, h f apart where
        nothing is wrong.
        """
        if equation != FIRST:
            return None
        damping = abs(self.scheme.coefficients(1).alpha)
        if damping < 1:
            return (
                f"{self.name} carries a second solution that changes its sign from step to step; each step "
                f"damps it by {damping:.3g} only, which is less than it grows where the flow contracts fast: "
                "take a smaller h, or ode.ReversibleRK('dopri5', lam=0.5)"
            )
        return (
            f"{self.name} carries a second solution that changes its sign from step to step and grows where"
            " the flow contracts: take 'blend', which damps it, ode.ReversibleRK('dopri5', lam=0.5), or a"
            " splitting such as 'blanes_moan6', whose copies are coupled"
        )

    def check(self, equation: str, steps: int) -> None:
        super().check(equation, steps)
        self.scheme.check_depth(steps)

    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        return _micros(self, n if self.period is None or n == 0 else 2 - n % 2)

    def begin(self, equation: str, y0: Any, h: Any) -> Slots:
        if equation == FIRST:
            return y0, y0
        q0, v0 = y0
        return (q0 + h * v0, q0) if self.start == "euler" else (q0 - h * v0, q0)

    def read(
        self, equation: str, n: int, slots: Slots, t: Any, h: Any, f: Callable[..., Tensor]
    ) -> tuple[Tensor, ...]:
        cur, prev = slots[(n + 1) % 2], slots[n % 2]
        if equation == FIRST:
            return (cur,)
        if n == 0:
            return cur, (prev - cur) / h if self.start == "euler" else (cur - prev) / h
        return cur, (cur - prev) / h + 0.5 * h * f(t, cur)


@functools.lru_cache(maxsize=4096)
def _micros(method: TwoStep, n: int) -> tuple[Micro, ...]:
    def at(scheme: Scheme) -> Coefficients:
        return scheme.start_coefficients(n, method.start)

    c = at(method.scheme)
    return (Micro(n % 2, c.alpha, c.beta, *_powers(method.scheme, at), F, 0.0),)


@dataclasses.dataclass(frozen=True)
class SymplecticEuler(Method):
    """The scheme ``Hamiltonian`` as a method: q' = a q + h F(t_n, p), then p' = b p + h G(t_{n+1}, q'). On
    q'' = f: F(v) = v, G = f.
    """

    scheme: Scheme

    def __post_init__(self) -> None:
        object.__setattr__(self, "scheme", _fresh(self.scheme))
        object.__setattr__(self, "name", self.scheme.name)
        object.__setattr__(self, "equations", _KIND[self.scheme.claims.equation])

    def claims(self, equation: str) -> Claims:
        return dataclasses.replace(self.scheme.claims, evaluations=2 if equation == SEPARABLE else 1)

    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        first, second = (F, G) if equation == SEPARABLE else (IDENTITY, F)
        (a, _, g), (b, _, k) = self.scheme.coefficients(0), self.scheme.coefficients(1)
        return Micro(0, a, 0.0, g, 1, first, 0.0), Micro(1, b, 0.0, k, 1, second, 1.0)

    def begin(self, equation: str, y0: Any, h: Any) -> Slots:
        return y0[0], y0[1]

    def read(
        self, equation: str, n: int, slots: Slots, t: Any, h: Any, f: Callable[..., Tensor]
    ) -> tuple[Tensor, ...]:
        return slots


def from_scheme(scheme: Scheme, start: str | None = None) -> Method:
    """The method of a registered scheme.

    Raises:
        ConfigError: a scheme whose equation has no ODE meaning here.
    """
    if scheme.claims.equation not in _KIND:
        raise ConfigError(
            f"{scheme.name} integrates {scheme.claims.equation!r}, expected one of {', '.join(_KIND)}"
        )
    if scheme.halves == 2:
        if start is not None:
            raise ConfigError(f"start is {start!r}, but {scheme.name} is a one-step method and takes none")
        return SymplecticEuler(scheme)
    return TwoStep(scheme, start or ("euler" if "euler" in scheme.starts else "repeat"))
