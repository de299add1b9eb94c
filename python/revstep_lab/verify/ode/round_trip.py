"""Reversal: bit-exact in fixed point, algebraic in float64 (off by no more than rounding explains), or
neither.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from revstep.ode import integrate
from revstep.ode.methods import Method
from revstep.verify._checks import Result

from .bounds import Majorant, begin, walker
from .oracle import altered
from .problems import PROBLEMS, OdeProblem

NAME = "round trip"
ON = ("Hamiltonian", "non-autonomous")
#: Steps in fixed point, where any number must return; and in float64, where the bound grows with the
#: inverse's amplification.
STEPS, FEW = 16, 8
H = 1 / 32


def bits(method: Method, problem: OdeProblem) -> int:
    """Elements of the slots that differ from the start's after the way there and back, in the default
    fixed-point state.
    """
    there = integrate(problem.field(), problem.y0(), scheme=method, h=H, steps=STEPS)
    back = there.reverse()
    return sum(int((a != b).sum()) for a, b in zip(there.start, back.final, strict=True))


def distance(method: Method, problem: OdeProblem) -> tuple[float, float]:
    """The same in float64 as a distance, and the most that rounding can do."""
    there = walker(method, problem.equation, problem.functions, begin(method, problem, H), H, steps=FEW)
    first, size = [s.clone() for s in there.states], problem.size
    for _ in range(FEW):
        there.forward()
        size = max(size, *(float(torch.linalg.vector_norm(s)) for s in there.states))
    majorant = Majorant(method, problem.equation, H, problem.lipschitz, problem.size, 2 * size)
    for n in reversed(range(FEW)):
        there.back()
        majorant.back(n)
    return (
        max(float(torch.linalg.vector_norm(a - b)) for a, b in zip(first, there.states, strict=True)),
        majorant.largest(),
    )


def measure(method: Method, equation: str) -> list[Result]:
    results = []
    for name in ON:
        problem = PROBLEMS[equation][name]
        wrong = bits(method, problem)
        what = f"{STEPS} steps and back on {problem.name}, default state"
        results.append(
            Result(f"bit-exact in fixed point, {name}", wrong == 0, wrong, 0, "elements that differ", what)
        )
        measured, bound = distance(method, problem)
        amplification = 1.0
        for n in range(FEW):
            for m in method.micros(n, equation):
                amplification *= max(1.0, 1 / abs(m.alpha))
        what = (
            f"{FEW} steps and back on {problem.name}; the inverse multiplies errors by up to"
            f" {amplification:.3g}"
        )
        results.append(
            Result(f"algebraic in float64, {name}", measured <= bound, measured, bound, "distance", what)
        )
    return results


class _Lossy:
    """A field that is not a function of its arguments: each call answers a little more."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, micros: tuple) -> tuple:
        self.calls += 1
        drift = 1 + 1e-9 * self.calls
        return tuple(replace(m, gamma_coef=m.gamma_coef * drift) for m in micros)


MUTANTS = {
    "verlet with coefficients that change from call to call": (altered("verlet", _Lossy()), "separable"),
    "midpoint with coefficients that change from call to call": (altered("midpoint", _Lossy()), "first"),
}
