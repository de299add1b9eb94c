"""The van der Pol oscillator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..native import VAN_DER_POL
from .base import BuiltIn, components, number, stack


@dataclass(frozen=True)
class VanDerPol(BuiltIn):
    """x' = y, y' = mu (1 - x**2) y - x: a limit cycle, stiff for large mu; no first integral.

    Args:
        mu: strength of the damping, a number: time is in units in which undamped swings have the frequency 1.
    """

    mu: float = 1.0

    kinds: ClassVar[tuple[str, ...]] = ("first",)
    number: ClassVar[int] = VAN_DER_POL
    equation: ClassVar[str] = "first"

    def __post_init__(self) -> None:
        object.__setattr__(self, "mu", number("VanDerPol mu", self.mu))

    def params(self) -> tuple[float, ...]:
        return (self.mu,)

    def check_event(self, event: tuple[int, ...]) -> None:
        if event != (2,):
            raise self._wrong(event, "(2,)")

    def force(self, t: Any, y: Any) -> Any:
        u, v = components(y)
        return stack([v, self.mu * (1.0 - u * u) * v - u])
