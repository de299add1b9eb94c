"""Time symmetry: the step with -h undoes the step with h. Claimed either way, measured both ways."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from revstep.ode.methods import Method, TwoStep
from revstep.verify._checks import Result

from .bounds import Majorant, begin, walker
from .oracle import altered, retimed, scaled
from .problems import PROBLEMS, OdeProblem

NAME = "symmetry"
STEPS = 3
H = 1 / 32
#: For methods that say they are not symmetric: one step, large, so that those of order 8 show it above what
#: rounding explains.
LARGE_H = 1 / 4
#: Defect of the mean in squares of the distance of the copies: measured at most 3.5 on these problems (0.5
#: to 3 where it is above rounding).
SQUARES = 4.0
ON = ("Hamiltonian", "non-autonomous")


class Defect(NamedTuple):
    """How far there and back is from the identity.

    Attributes:
        slots: distance of the slots, the larger one.
        rounding: what rounding can do to a slot.
        mean: distance of the mean of the slots; of methods with two copies, what is read.
        apart: distance of the slots from one another, the largest on the way.
    """

    slots: float
    rounding: float
    mean: float
    apart: float


def defect(method: Method, problem: OdeProblem, h: float = H, steps: int = STEPS) -> Defect:
    """How far ``steps`` steps with h and as many with -h are from the identity.

    A one-step method goes back from its last slots, at the last time. A two-step method ``x[n+1] = R(x[n-1],
    x[n])`` goes back on the exchanged pair: ``x[n-1] = R_{-h}(x[n+1], x[n])``, with f at the time of x[n]
    both ways; the start step is no two-step step and left out.
    """
    equation, functions = problem.equation, problem.functions
    two_step = isinstance(getattr(method, "base", method), TwoStep)
    there = walker(method, equation, functions, begin(method, problem, h), h)
    if two_step:
        there.forward()
    first, begun = [s.clone() for s in there.states], there.n
    apart = 0.0
    for _ in range(steps):
        there.forward()
        apart = max(apart, _distance(*there.states))
    # The walker of the way back counts up, its clock runs down. A two-step method writes the slots in turn,
    # by the parity of n: first the one written last.
    n = there.n + 1 if two_step else there.n
    origin = (there.n - 1 + n) * h if two_step else (there.n + n) * h
    back = walker(method, equation, functions, there.states, -h, origin, n)
    for _ in range(steps):
        back.forward()
        apart = max(apart, _distance(*back.states))
    measured = max(_distance(a, b) for a, b in zip(first, back.states, strict=True))
    mean = _distance(first[0] + first[1], back.states[0] + back.states[1]) / 2
    size = 2 * max(problem.size, *(float(torch.linalg.vector_norm(s)) for s in (*first, *there.states)))
    majorant = Majorant(method, equation, h, problem.lipschitz, problem.size, size)
    for k in range(2 * steps):
        majorant.forward(begun + k)
    return Defect(measured, majorant.largest(), mean, apart)


def _distance(a: Tensor, b: Tensor) -> float:
    return float(torch.linalg.vector_norm(a - b))


def measure(method: Method, equation: str) -> list[Result]:
    claims, results = method.claims(equation), []
    h, steps = (H, STEPS) if claims.symmetric else (LARGE_H, 1)
    for name in ON:
        problem = PROBLEMS[equation][name]
        found = defect(method, problem, h, steps)
        measured, bound = found.slots, found.rounding
        off = f"off by {measured:.1e}, rounding explains at most {bound:.1e}"
        what = f"{steps} step{'s' * (steps > 1)} of {h:g} and back with -h on {problem.name}: {off}"
        if claims.symmetric:
            results.append(
                Result(f"time-symmetric, {name}", measured <= bound, measured, bound, "distance", what)
            )
            continue
        # A method that says it is not symmetric has to be seen not to be: the ratio of bound to defect is
        # below 1.
        ratio = bound / measured if measured else float("inf")
        claim, unit = f"not time-symmetric, {name}", "rounding bound / defect"
        results.append(Result(claim, ratio < 1, ratio, 1.0, unit, what))
        if claims.even:
            results.append(_even(name, found))
    return results


def _even(name: str, found: Defect) -> Result:
    """What is read of coupled copies goes back but for the square of their distance, so that its error is
    even in h as far as that reaches.
    """
    bound = found.rounding + SQUARES * found.apart**2
    what = f"the mean is off by {found.mean:.1e}, the copies were up to {found.apart:.1e} apart"
    claim = f"time-symmetric in the mean to the square of the distance of the copies, {name}"
    return Result(claim, found.mean <= bound, found.mean, bound, "distance", what)


_LIAR = altered("suzuki4", lambda micros: micros, symmetric=True)
_HALF = altered("suzuki4", lambda micros: micros[:-1])
MUTANTS = {
    "a coefficient of a palindrome 1e-6 off": (altered("yoshida4", scaled(1 + 1e-6, 0)), "separable"),
    "verlet without its last drift": (altered("verlet", scaled(0.0, 2)), "second"),
    "verlet whose functions all see the start of the step": (altered("verlet", retimed(0.0)), "separable"),
    "symplectic Euler that claims symmetry": (
        altered("hamiltonian", lambda micros: micros, symmetric=True),
        "separable",
    ),
    "coupled copies that claim symmetry": (_LIAR, "first"),
    "copies of which only one is drawn to the other": (_HALF, "first"),
    "leapfrog that denies its symmetry": (
        altered("leapfrog", lambda micros: micros, symmetric=False),
        "second",
    ),
}
