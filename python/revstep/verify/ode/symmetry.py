"""Time symmetry: the step with -h undoes the step with h. Claimed either way, measured both ways."""

from __future__ import annotations

import torch

from ...ode.methods import Method, TwoStep
from ..result import Result
from .bounds import Majorant
from .mutants import altered, retimed, scaled
from .problems import PROBLEMS, OdeProblem
from .stepping import begin, walker

NAME = "symmetry"
STEPS = 3
H = 1 / 32
ON = ("Hamiltonian", "non-autonomous")


def defect(method: Method, problem: OdeProblem) -> tuple[float, float]:
    """How far :data:`STEPS` steps with h and as many with -h are from the identity on the slots, and a bound on what rounding can do.

    A one-step method goes back from its last slots, at the last time. A two-step method ``x[n+1] = R(x[n-1], x[n])`` goes back on the exchanged pair:
    ``x[n-1] = R_{-h}(x[n+1], x[n])``, with f at the time of x[n] both ways; the start step is no two-step step and left out.
    """
    equation, functions = problem.equation, problem.functions
    two_step = isinstance(getattr(method, "base", method), TwoStep)
    there = walker(method, equation, functions, begin(method, problem, H), H)
    if two_step:
        there.forward()
    first, begun = [s.clone() for s in there.slots], there.n
    for _ in range(STEPS):
        there.forward()
    # The walker of the way back counts up, its clock runs down. A two-step method writes the slots in turn, by the parity of n: first the one written last.
    n = there.n + 1 if two_step else there.n
    origin = (there.n - 1 + n) * H if two_step else (there.n + n) * H
    back = walker(method, equation, functions, there.slots, -H, origin, n)
    for _ in range(STEPS):
        back.forward()
    measured = max(float(torch.linalg.vector_norm(a - b)) for a, b in zip(first, back.slots, strict=True))
    size = 2 * max(problem.size, *(float(torch.linalg.vector_norm(s)) for s in (*first, *there.slots)))
    majorant = Majorant(method, equation, H, problem.lipschitz, problem.size, size)
    for k in range(2 * STEPS):
        majorant.forward(begun + k)
    return measured, majorant.largest()


def measure(method: Method, equation: str) -> list[Result]:
    claims, results = method.claims(equation), []
    for name in ON:
        problem = PROBLEMS[equation][name]
        measured, bound = defect(method, problem)
        what = f"{STEPS} steps of {H:g} and back with -h on {problem.name}: off by {measured:.1e}, rounding explains at most {bound:.1e}"
        if claims.symmetric:
            results.append(Result(f"time-symmetric, {name}", measured <= bound, measured, bound, "distance", what))
        else:  # a method that says it is not symmetric has to be seen not to be: the ratio of bound to defect is below 1
            ratio = bound / measured if measured else float("inf")
            results.append(Result(f"not time-symmetric, {name}", ratio < 1, ratio, 1.0, "rounding bound / defect", what))
    return results


MUTANTS = {
    "a coefficient of a palindrome 1e-6 off": (altered("yoshida4", scaled(1 + 1e-6, 0)), "separable"),
    "verlet without its last drift": (altered("verlet", scaled(0.0, 2)), "second"),
    "verlet whose functions all see the start of the step": (altered("verlet", retimed(0.0)), "separable"),
    "symplectic Euler that claims symmetry": (altered("hamiltonian", lambda micros: micros, symmetric=True), "separable"),
    "leapfrog that denies its symmetry": (altered("leapfrog", lambda micros: micros, symmetric=False), "second"),
}
