"""Predators and prey by their logarithms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from ..native import LOTKA_VOLTERRA_LOG, Native
from .base import BuiltIn, exp, number


@dataclass(frozen=True)
class LotkaVolterraLog(BuiltIn):
    """:class:`LotkaVolterra` with q = log x, p = log y: q' = a - b e**p, p' = d e**q - c; every component a pair of its own.

    Separable, H = a p - b e**p + c q - d e**q (summed over the last axis), so that symplectic methods apply; populations stay positive.
    The compiled loop has its own exponential, the same bits on every machine; torch's and NumPy's may differ from it in the last bit.

    Args:
        a: growth of the prey, in 1 / time, positive.
        b: losses of the prey, in 1 / (predators time), positive.
        c: death of the predators, in 1 / time, positive.
        d: growth of the predators, in 1 / (prey time), positive.
    """

    a: float = 2.0 / 3.0
    b: float = 4.0 / 3.0
    c: float = 1.0
    d: float = 1.0

    kinds: ClassVar[tuple[str, ...]] = ("separable",)
    number: ClassVar[int] = LOTKA_VOLTERRA_LOG
    equation: ClassVar[str] = "separable"

    def __post_init__(self) -> None:
        for name in "abcd":
            object.__setattr__(self, name, number(f"LotkaVolterraLog {name}", getattr(self, name), positive=True))

    def params(self) -> tuple[float, ...]:
        return (self.a, self.b, self.c, self.d)

    def velocity(self, t: Any, p: Any) -> Any:
        return self.a - self.b * exp(p)

    def force(self, t: Any, q: Any) -> Any:
        return self.d * exp(q) - self.c

    def functions(self) -> tuple[Callable, ...]:
        return (self.velocity, self.force)

    def compiled(self) -> Native:
        return Native(self.number, self.params(), (0, 1))

    def energy(self, q: Any, p: Any) -> Any:
        return (self.a * p - self.b * exp(p) + self.c * q - self.d * exp(q)).sum(-1)

    def integrals(self) -> dict:
        return {"energy": self.energy}
