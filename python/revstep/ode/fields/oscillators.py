"""Built-in fields of oscillators, chains, linear systems and populations: from the harmonic oscillator and
the pendulum to the predators and prey of Lotka and Volterra.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...errors import ConfigError
from .._functions import (
    FPUT,
    HARMONIC,
    HENON_HEILES,
    LINEAR,
    LOTKA_VOLTERRA,
    LOTKA_VOLTERRA_LOG,
    PENDULUM,
    VAN_DER_POL,
    Native,
)
from ._base import BuiltIn, added, components, cos, exp, log, number, sin, stack

# ---- The harmonic oscillator ----


@dataclass(frozen=True)
class Harmonic(BuiltIn):
    """q'' = -omega**2 q, every component on its own; H = (v**2 + omega**2 q**2) / 2, summed over the last
    axis.

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

    def integrals(self) -> dict[str, Any]:
        return {"energy": self.energy}


# ---- The mathematical pendulum ----


@dataclass(frozen=True)
class Pendulum(BuiltIn):
    """q'' = -omega**2 sin q, every component a pendulum of its own; H = v**2 / 2 - omega**2 cos q, summed
    over the last axis.

    The compiled loop has its own sine, the same bits on every machine; torch's and NumPy's may differ from it
    in the last bit.

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

    def integrals(self) -> dict[str, Any]:
        return {"energy": self.energy}


# ---- The van der Pol oscillator ----


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


# ---- The Fermi-Pasta-Ulam-Tsingou chain ----


@dataclass(frozen=True)
class Fput(BuiltIn):
    """A chain of unit masses with fixed ends: q[i]'' = s(r[i+1]) - s(r[i]), r[i] = q[i] - q[i-1], s(r) = r +
    alpha r**2 + beta r**3.

    V = sum over the n + 1 springs of r**2 / 2 + alpha r**3 / 3 + beta r**4 / 4.

    Args:
        alpha: strength of the cubic term of the energy, in 1 / length; masses and springs are 1.
        beta: strength of the quartic term, in 1 / length**2.
        equation: ``"separable"`` or ``"second"``.

    Source: Fermi, Pasta, Ulam (and Tsingou), Los Alamos report LA-1940 (1955).
    """

    alpha: float = 0.25
    beta: float = 0.0
    equation: str = "separable"

    kinds: ClassVar[tuple[str, ...]] = ("separable", "second")
    number: ClassVar[int] = FPUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number("Fput alpha", self.alpha))
        object.__setattr__(self, "beta", number("Fput beta", self.beta))
        self._check_equation()

    def params(self) -> tuple[float, ...]:
        return (self.alpha, self.beta)

    def _springs(self, q: Any) -> Any:
        """(..., n + 1): how far each spring is stretched."""
        if isinstance(q, torch.Tensor):
            ends = torch.nn.functional.pad(q, (1, 1))
        else:
            ends = np.pad(q, [(0, 0)] * (q.ndim - 1) + [(1, 1)])
        return ends[..., 1:] - ends[..., :-1]

    def force(self, t: Any, q: Any) -> Any:
        r = self._springs(q)
        s = r * (1.0 + r * (self.alpha + self.beta * r))
        return s[..., 1:] - s[..., :-1]

    def energy(self, q: Any, v: Any) -> Any:
        r = self._springs(q)
        return 0.5 * (v * v).sum(-1) + (r * r * (0.5 + r * (self.alpha / 3.0 + self.beta / 4.0 * r))).sum(-1)

    def integrals(self) -> dict[str, Any]:
        return {"energy": self.energy}


# ---- The Henon-Heiles system ----


@dataclass(frozen=True)
class HenonHeiles(BuiltIn):
    """V = (x**2 + y**2) / 2 + c (x**2 y - y**3 / 3), unit mass; regular at low energy, chaotic towards the
    escape energy 1 / (6 c**2).

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

    def integrals(self) -> dict[str, Any]:
        return {"energy": self.energy}


# ---- Linear systems ----


@dataclass(frozen=True)
class Linear(BuiltIn):
    """y' = A y, or q'' = A q; the sum over columns is taken in ascending order.

    Args:
        A: square matrix, rows of numbers, in 1 / time for y' = A y, in 1 / time**2 for q'' = A q.
        equation: ``"first"``, ``"second"``, or ``"separable"`` (q' = p, p' = A q; Hamiltonian when A is
            symmetric).
    """

    A: Sequence[Sequence[float]]
    equation: str = "first"

    kinds: ClassVar[tuple[str, ...]] = ("first", "second", "separable")
    number: ClassVar[int] = LINEAR

    def __post_init__(self) -> None:
        a = np.asarray(self.A, dtype=np.float64)
        if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.size or not np.isfinite(a).all():
            raise ConfigError(f"Linear A has shape {a.shape}, expected a square matrix of finite numbers")
        object.__setattr__(self, "A", tuple(tuple(row) for row in a.tolist()))
        self._check_equation()

    def params(self) -> tuple[float, ...]:
        return tuple(x for row in self.A for x in row)

    def check_event(self, event: tuple[int, ...]) -> None:
        if event != (len(self.A),):
            raise self._wrong(event, f"({len(self.A)},)")

    def force(self, t: Any, y: Any) -> Any:
        columns = list(zip(*self.A))
        make = y.new_tensor if isinstance(y, torch.Tensor) else np.asarray
        return added([make(column) * y[..., j : j + 1] for j, column in enumerate(columns)])

    def integrals(self) -> dict[str, Any]:
        symmetric = self.equation != "first" and self.A == tuple(zip(*self.A))
        return {"energy": self._energy} if symmetric else {}

    def _energy(self, q: Any, v: Any) -> Any:
        return 0.5 * (v * v).sum(-1) - 0.5 * (q * self.force(0.0, q)).sum(-1)


# ------------------------------------------------------------------------------------------------------------
# Predators and prey.


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

    def integrals(self) -> dict[str, Any]:
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

    def functions(self) -> tuple[Callable[..., Any], ...]:
        return (self.velocity, self.force)

    def compiled(self) -> Native:
        return Native(self.number, self.params(), (0, 1))

    def energy(self, q: Any, p: Any) -> Any:
        return (self.a * p - self.b * exp(p) + self.c * q - self.d * exp(q)).sum(-1)

    def integrals(self) -> dict[str, Any]:
        return {"energy": self.energy}
