"""What a public problem is; the sixty of them are in ``public_first_order.py`` and ``public_mechanics.py``.

They come from textbooks, from the test sets of other people (DETEST: Hull, Enright, Fellen, Sedgwick, SIAM
J. Numer. Anal. 9 (1972) 603; its letters are in the names) and from the trackers of other integrators.

A field is written on plain floats, ``f(t, y)`` returning one number a component, so that both loops and
scipy can run the same function. Problems without a closed form are held against scipy's DOP853. Too stiff
for the explicit methods here, and left out for that reason: Robertson's kinetics, HIRES, the Oregonator and
van der Pol's oscillator at large mu.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

Function = Callable[[float, Sequence[float]], Sequence[float]]


@dataclass(frozen=True)
class PublicProblem:
    """One initial value problem.

    Attributes:
        name: for the test's id.
        equation: ``"first"``, ``"second"`` or ``"separable"``.
        functions: ``(f,)`` or ``(F, G)``.
        start: ``(y0,)``, ``(q0, v0)`` or ``(q0, p0)``.
        end: the time at which the error is taken, from t = ``begin`` on.
        closed: the solution at a time, all parts concatenated; None: DOP853.
        steps: of the coarsest run of a method of order 4; others take more or fewer.
        long: the flow contracts for so long that the second solution of the midpoint rule outgrows the
            first at any step size (its ``parasite()`` says so): those without a remedy for it, "midpoint"
            and "midpoint_blend", are left out.
    """

    name: str
    equation: str
    functions: tuple[Function, ...]
    start: tuple[tuple[float, ...], ...]
    end: float
    closed: Callable[[float], Sequence[float]] | None = None
    steps: int = 32
    begin: float = 0.0
    long: bool = False

    def rate(self, t: float, y: np.ndarray) -> np.ndarray:
        """The right-hand side as one first-order system."""
        y = y.tolist()
        if self.equation == "first":
            return np.array(self.functions[0](t, y))
        half = len(y) // 2
        q, p = y[:half], y[half:]
        first = p if self.equation == "second" else self.functions[0](t, p)
        return np.array([*first, *self.functions[-1](t, q)])

    def parts(self) -> Any:
        """The start as ``integrate`` takes it."""
        arrays = tuple(np.array(part, dtype=np.float64) for part in self.start)
        return arrays[0] if self.equation == "first" else arrays


@lru_cache(maxsize=128)
def exact(problem: PublicProblem) -> np.ndarray:
    """The solution at the end."""
    return np.array(problem.closed(problem.end), dtype=np.float64) if problem.closed else by_dop853(problem)


def by_dop853(problem: PublicProblem) -> np.ndarray:
    start = np.concatenate([np.array(part, dtype=np.float64) for part in problem.start])
    scale = np.abs(start).max() or 1.0
    options = {"method": "DOP853", "rtol": 3e-14, "atol": 1e-17 * scale}
    run = solve_ivp(problem.rate, (problem.begin, problem.end), start, **options)
    assert run.success, run.message
    return run.y[:, -1]
