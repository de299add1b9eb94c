"""The mathematical pendulum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..native import PENDULUM
from .base import BuiltIn, cos, number, sin


@dataclass(frozen=True)
class Pendulum(BuiltIn):
    """q'' = -omega**2 sin q, every component a pendulum of its own; H = v**2 / 2 - omega**2 cos q, summed over the last axis.

    The compiled loop has its own sine, the same bits on every machine; torch's and NumPy's may differ from it in the last bit.

    Args:
        omega: angular frequency of small swings, sqrt(g / length), in 1 / time, positive; q is in radians.
        equation: ``"separable"`` or ``"second"``.
    """

    omega: float = 1.0
    equation: str = "separable"

    kinds: ClassVar[tuple[str, ...]] = ("separable", "second")
    number: ClassVar[int] = PENDULUM

    def __post_init__(self) -> None:
        object.__setattr__(self, "omega", number("Pendulum omega", self.omega, positive=True))
        self._check_equation()

    def params(self) -> tuple[float, ...]:
        return (self.omega * self.omega,)

    def force(self, t: Any, q: Any) -> Any:
        return -(self.omega * self.omega) * sin(q)

    def energy(self, q: Any, v: Any) -> Any:
        return (0.5 * v * v - self.omega * self.omega * cos(q)).sum(-1)

    def integrals(self) -> dict:
        return {"energy": self.energy}
