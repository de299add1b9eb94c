"""The harmonic oscillator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..native import HARMONIC
from .base import BuiltIn, number


@dataclass(frozen=True)
class Harmonic(BuiltIn):
    """q'' = -omega**2 q, every component on its own; H = (v**2 + omega**2 q**2) / 2, summed over the last axis.

    Args:
        omega: angular frequency, in radians / time, positive.
        equation: ``"separable"`` or ``"second"``.
    """

    omega: float = 1.0
    equation: str = "separable"

    kinds: ClassVar[tuple[str, ...]] = ("separable", "second")
    number: ClassVar[int] = HARMONIC

    def __post_init__(self) -> None:
        object.__setattr__(self, "omega", number("Harmonic omega", self.omega, positive=True))
        self._check_equation()

    def params(self) -> tuple[float, ...]:
        return (self.omega * self.omega,)

    def force(self, t: Any, q: Any) -> Any:
        return -(self.omega * self.omega) * q

    def energy(self, q: Any, v: Any) -> Any:
        return 0.5 * (v * v + self.omega * self.omega * q * q).sum(-1)

    def integrals(self) -> dict:
        return {"energy": self.energy}
