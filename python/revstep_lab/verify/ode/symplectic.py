"""Symplecticity: J^T Omega J = Omega for the Jacobian J of some steps, by autograd and by central
differences. Claimed either way, measured both ways.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from revstep.ode import integrate
from revstep.ode.methods import Method
from revstep.state import Float
from revstep.verify._checks import Result

from .oracle import altered, damped, scaled
from .problems import PROBLEMS, OdeProblem

NAME = "symplecticity"
STEPS = 3
#: Step by kind of equation: large, so that a method that is not symplectic shows it; for the problem of its
#: Hamiltonian class.
H = {"first": 1.0, "second": 1 / 8, "separable": 1 / 8}
#: Start of the pendulum as a first-order equation: far from linear, so that the doubled system's defect shows
#: at order 8.
LARGE = ((2.0, 0.5),)
EPS = 2.0**-52
#: Width of the differences, which are extrapolated twice: it balances their error width**4 against rounding
#: eps/width.
DIFFERENCE = 2.0**-10


def step_size(method: Method, equation: str) -> float:
    """Half as large for methods of order 1, whose two copies would come too far apart to be a solution."""
    return H[equation] / (2 if method.claims(equation).order == 1 else 1)


def flow(method: Method, problem: OdeProblem, z: Tensor, steps: int) -> Tensor:
    """The positions and momenta (velocities) after ``steps`` steps from ``z``, both concatenated, in float64
    states.
    """
    parts = z if problem.equation == "first" else tuple(z.chunk(2, dim=-1))
    h = step_size(method, problem.equation)
    found = integrate(problem.field(), parts, scheme=method, h=h, steps=steps, state=Float(torch.float64))
    return found.ys[-1] if found.second is None else torch.cat([found.ys[-1], found.second[-1]], dim=-1)


def by_autograd(method: Method, problem: OdeProblem, z: Tensor, steps: int = STEPS) -> Tensor:
    return torch.autograd.functional.jacobian(lambda x: flow(method, problem, x, steps), z)


def by_differences(method: Method, problem: OdeProblem, z: Tensor) -> tuple[Tensor, float]:
    """The Jacobian by central differences of three widths with their error of second order extrapolated away,
    and a bound of what is left of it.

    The two extrapolations from widths (w, 2 w) and (2 w, 4 w) differ by 15 times the error of the better one.
    """
    widths = [DIFFERENCE * 2**k for k in range(3)]
    unit = torch.eye(len(z), dtype=z.dtype)
    ends = flow(
        method, problem, torch.cat([z + sign * w * unit for w in widths for sign in (1, -1)]), STEPS
    ).reshape(3, 2, len(z), len(z))
    first, second, third = ((ends[k, 0] - ends[k, 1]).T / (2 * w) for k, w in enumerate(widths))
    better, worse = (4 * first - second) / 3, (4 * second - third) / 3
    return better, float((better - worse).abs().max())


def defect(jacobian: Tensor) -> float:
    """Largest entry of ``J^T Omega J - Omega``."""
    half = len(jacobian) // 2
    one, zero = torch.eye(half, dtype=jacobian.dtype), torch.zeros(half, half, dtype=jacobian.dtype)
    omega = torch.cat([torch.cat([zero, one], 1), torch.cat([-one, zero], 1)])
    return float((jacobian.T @ omega @ jacobian - omega).abs().max())


def measure(method: Method, equation: str) -> list[Result]:
    """Of the map of (q, p) or (q, v); for first-order equations of y = (q, p), as the solution is read out,
    with its start.
    """
    problem, claims = PROBLEMS[equation]["Hamiltonian"], method.claims(equation)
    if equation == "first":
        problem = replace(problem, start=LARGE)
    z = torch.cat([torch.tensor(part, dtype=torch.float64) for part in problem.start])
    micros = sum(len(method.micros(n, equation)) for n in range(STEPS)) * (
        len(method.tableau.b) if method.tableau else 1
    )
    jacobian = by_autograd(method, problem, z)
    norm = max(
        1.0,
        float(torch.linalg.matrix_norm(jacobian, 2)),
        *(float(torch.linalg.matrix_norm(by_autograd(method, problem, z, k), 2)) for k in (1, 2)),
    )
    # Each micro-step contributes a factor to J with some 8 roundings; what stands before and after it has
    # about the norm of J (the inverse of a symplectic J has J's norm); J^T Omega J doubles the error and
    # multiplies it by the norm once more.
    rounding = 8 * EPS * micros * 2 * norm**3
    differences, left = by_differences(method, problem, z)
    entry = 8 * EPS * micros * norm * 3 / DIFFERENCE + left  # weights 4/3 and 1/3 over 2 w and 4 w: below 3/w
    results = [_judged(claims.symplectic, "autograd", problem, method, defect(jacobian), rounding)]
    if claims.symplectic:
        return [
            *results,
            _judged(
                True, "finite differences", problem, method, defect(differences), 2 * norm * len(z) * entry
            ),
        ]
    # Differences do not resolve the small defect of a method of order 8: there they are the witness that
    # autograd's Jacobian is the flow's.
    off = float((differences - jacobian).abs().max())
    return [
        *results,
        Result(
            "Jacobian by finite differences is autograd's",
            off <= entry + rounding,
            off,
            entry + rounding,
            "largest difference",
            problem.name,
        ),
    ]


def _judged(
    claimed: bool, how: str, problem: OdeProblem, method: Method, measured: float, bound: float
) -> Result:  # fmt: skip
    h = step_size(method, problem.equation)
    what = (
        f"{STEPS} steps of {h:g} on {problem.name}: defect {measured:.1e}, rounding explains at most"
        f" {bound:.1e}"
    )
    if claimed:
        return Result(
            f"symplectic, by {how}",
            measured <= bound,
            measured,
            bound,
            "largest entry of J^T Omega J - Omega",
            what,
        )
    ratio = bound / measured if measured else float("inf")
    return Result(f"not symplectic, by {how}", ratio < 1, ratio, 1.0, "rounding bound / defect", what)


MUTANTS = {
    "symplectic Euler damped by 2**-12": (altered("hamiltonian", damped(1 - 2.0**-12)), "separable"),
    "leapfrog damped by 2**-12": (altered("leapfrog", damped(-1 + 2.0**-12)), "second"),
    "verlet damped by 2**-20": (altered("verlet", damped(1 - 2.0**-20)), "separable"),
    "the doubled system that claims to be symplectic in y": (
        altered("yoshida4", lambda micros: micros, symplectic=True),
        "first",
    ),
    "verlet that denies it": (altered("verlet", scaled(1.0), symplectic=False), "second"),
}
