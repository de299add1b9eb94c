"""Predators and prey."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from .._functions import LOTKA_VOLTERRA, LOTKA_VOLTERRA_LOG, Native
from ._base import BuiltIn, components, exp, log, number, stack


@dataclass(frozen=True)
class LotkaVolterra(BuiltIn):
    """x' = x (a - b y), y' = y (d x - c) for positive x, y; y = (x, y). Conserves d x - c log x + b y - a log
    y.

    :class:`LotkaVolterraLog` is the same in the variables in which it is a separable Hamiltonian system.

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

    kinds: ClassVar[tuple[str, ...]] = ("first",)
    number: ClassVar[int] = LOTKA_VOLTERRA
    equation: ClassVar[str] = "first"

    def __post_init__(self) -> None:
        for name in "abcd":
            object.__setattr__(
                self, name, number(f"LotkaVolterra {name}", getattr(self, name), positive=True)
            )

    def params(self) -> tuple[float, ...]:
        return (self.a, self.b, self.c, self.d)

    def check_event(self, event: tuple[int, ...]) -> None:
        if event != (2,):
            raise self._wrong(event, "(2,)")

    def force(self, t: Any, y: Any) -> Any:
        u, v = components(y)
        return stack([u * (self.a - self.b * v), v * (self.d * u - self.c)])

    def invariant(self, y: Any) -> Any:
        u, v = components(y)
        return self.d * u - self.c * log(u) + self.b * v - self.a * log(v)

    def integrals(self) -> dict:
        return {"invariant": self.invariant}


# ---- Predators and prey by their logarithms ----


@dataclass(frozen=True)
class LotkaVolterraLog(BuiltIn):
    """:class:`LotkaVolterra` with q = log x, p = log y: q' = a - b e**p, p' = d e**q - c; every component a
    pair of its own.

    Separable, H = a p - b e**p + c q - d e**q (summed over the last axis), so that symplectic methods apply;
    populations stay positive. The compiled loop has its own exponential, the same bits on every machine;
    torch's and NumPy's may differ from it in the last bit.

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
            object.__setattr__(
                self, name, number(f"LotkaVolterraLog {name}", getattr(self, name), positive=True)
            )

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
