"""The two slots of a method in float64, for properties that live on slots rather than on solutions: their
steps, through the library's own loop, and how far roundings can carry two runs apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from revstep.ode._loop import Walker
from revstep.ode._problem import Grid, Problem
from revstep.ode.methods import Method, Micro
from revstep.ode.methods._base import IDENTITY
from revstep.state import Float

from .problems import OdeProblem

# ------------------------------------------------------------------------------------------------------------
# Steps of a method on its slots in float64, through the library's own loop.

FLOAT64 = Grid(Float(torch.float64), (1.0, 1.0))


def walker(
    method: Method,
    equation: str,
    functions: Sequence[Callable],
    slots: Sequence[Tensor],
    h: float,
    t0: float = 0.0,
    n: int = 0,
    steps: int = 0,
) -> Walker:
    """A walker at step ``n`` of a float64 run."""
    everywhere = (-math.inf, math.inf)  # the steps are those of the method, wherever they look
    problem = Problem(
        method,
        equation,
        tuple(functions),
        FLOAT64,
        torch.float64,
        h,
        t0,
        steps,
        (0, steps),
        interval=everywhere,
    )
    return Walker(problem, [s.clone() for s in slots], (), n)


def begin(method: Method, problem: OdeProblem, h: float) -> tuple[Tensor, Tensor]:
    """The two slots at step 0 of a problem."""
    return method.begin(problem.equation, problem.y0(), h)


# ------------------------------------------------------------------------------------------------------------
# How far roundings can carry two runs apart: a majorant of the micro-steps, one scalar per slot.

EPS = 2.0**-52


@dataclass
class Majorant:
    """Bounds (2-norm, absolute) on the errors of the two slots, carried through micro-steps forwards and
    backwards.

    A micro-step ``x' = alpha x + beta y + gamma Phi(y)`` turns errors (e_x, e_y) into ``|alpha| e_x + (|beta|
    + |gamma| L) e_y`` plus its own rounding; its inverse into ``(e_x + (|beta| + |gamma| L) e_y) / |alpha|``
    plus its own. Own roundings: some 8 operations on numbers of at most ``(|alpha| + |beta|) size + |gamma|
    rate``, half an ulp each: 4 eps of it (the field's own operations among them, the problems' fields take at
    most 4).

    Args:
        lipschitz, rate: of the field: bounds of its derivative and of its values.
        size: bound of the slots.
    """

    method: Method
    equation: str
    h: float
    lipschitz: float
    rate: float
    size: float

    def __post_init__(self) -> None:
        self.errors = [0.0, 0.0]

    def weights(self, m: Micro) -> tuple[float, float]:
        """``|gamma| L`` and ``|gamma| |Phi|`` of a micro-step."""
        gamma = abs(m.gamma(self.h))
        if m.field == IDENTITY:
            return gamma, gamma * self.size
        if not m.rk_sign:
            return gamma * self.lipschitz, gamma * self.rate
        table, z = self.method.tableau, abs(self.h) * self.lipschitz
        slopes: list[float] = []  # Lipschitz constants of the stages in units of L
        for row in table.a:
            slopes.append(1.0 + z * sum(abs(a) * s for a, s in zip(row, slopes)))
        return (
            gamma * z * sum(abs(b) * s for b, s in zip(table.b, slopes, strict=True)),
            gamma * abs(self.h) * self.rate * sum(map(abs, table.b)) * 2,
        )

    def _own(self, m: Micro) -> float:
        return 4 * EPS * ((abs(m.alpha) + abs(m.beta)) * self.size + self.weights(m)[1])

    def forward(self, n: int) -> None:
        for m in self.method.micros(n, self.equation):
            i, j = m.slot, 1 - m.slot
            self.errors[i] = (
                abs(m.alpha) * self.errors[i]
                + (abs(m.beta) + self.weights(m)[0]) * self.errors[j]
                + self._own(m)
            )

    def back(self, n: int) -> None:
        """The inverse of step n, started where the forward step rounded: its rounding counts here too."""
        for m in reversed(self.method.micros(n, self.equation)):
            i, j = m.slot, 1 - m.slot
            self.errors[i] = (
                self.errors[i] + (abs(m.beta) + self.weights(m)[0]) * self.errors[j] + 2 * self._own(m)
            ) / abs(m.alpha)

    def largest(self) -> float:
        return max(self.errors)
