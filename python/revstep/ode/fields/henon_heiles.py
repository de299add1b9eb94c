"""The Henon-Heiles system."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..native import HENON_HEILES
from .base import BuiltIn, components, number, stack


@dataclass(frozen=True)
class HenonHeiles(BuiltIn):
    """V = (x**2 + y**2) / 2 + c (x**2 y - y**3 / 3), unit mass; regular at low energy, chaotic towards the escape energy 1 / (6 c**2).

    Args:
        c: strength of the cubic terms, in 1 / length (the two frequencies are 1).
        equation: ``"separable"`` or ``"second"``.

    Source: Henon and Heiles, Astron. J. 69 (1964).
    """

    c: float = 1.0
    equation: str = "separable"

    kinds: ClassVar[tuple[str, ...]] = ("separable", "second")
    number: ClassVar[int] = HENON_HEILES

    def __post_init__(self) -> None:
        object.__setattr__(self, "c", number("HenonHeiles c", self.c))
        self._check_equation()

    def params(self) -> tuple[float, ...]:
        return (self.c,)

    def check_event(self, event: tuple[int, ...]) -> None:
        if event != (2,):
            raise self._wrong(event, "(2,)")

    def force(self, t: Any, q: Any) -> Any:
        x, y = components(q)
        return stack([-x - (2.0 * self.c) * x * y, -y - self.c * (x * x - y * y)])

    def energy(self, q: Any, v: Any) -> Any:
        x, y = components(q)
        return 0.5 * (v * v).sum(-1) + 0.5 * (x * x + y * y) + self.c * (x * x * y - y * y * y / 3.0)

    def integrals(self) -> dict:
        return {"energy": self.energy}
