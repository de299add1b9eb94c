"""Test problems with known solutions: for each kind of equation the four classes of problem that the claims
of order are measured on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp
from scipy.linalg import expm
from scipy.special import ellipj
from torch import Tensor

from revstep.ode._equations import FIRST, SECOND, SEPARABLE, FirstOrder, SecondOrder, Separable

CLASSES = ("autonomous", "non-autonomous", "non-normal", "Hamiltonian")


@dataclass(frozen=True)
class OdeProblem:
    """A field with its start and its solution at the end.

    Attributes:
        name: what it is, for tables.
        equation: its kind.
        functions: (f,) or (F, G), each f(t, x) on tensors, the components in the last axis.
        start: (y0,), (q0, v0) or (q0, p0), as tuples of numbers.
        end: the time at which the error is taken.
        closed: the solution as a function of t, all parts concatenated (:func:`dop853` is the independent
            check of it).
        size: a bound of |Phi| of its functions along the solution.
        lipschitz: a bound of the functions' derivatives (2-norm) near the solution, for bounds on rounding.
    """

    name: str
    equation: str
    functions: tuple[Callable[[Tensor, Tensor], Tensor], ...]
    start: tuple[tuple[float, ...], ...]
    end: float
    closed: Callable[[float], np.ndarray]
    size: float
    lipschitz: float

    def field(self) -> Any:
        return {FIRST: FirstOrder, SECOND: SecondOrder, SEPARABLE: Separable}[self.equation](*self.functions)

    def y0(self) -> Any:
        parts = tuple(torch.tensor(part, dtype=torch.float64) for part in self.start)
        return parts[0] if self.equation == FIRST else parts

    def exact(self, count: int = 1) -> np.ndarray:
        """The solution at ``count`` equidistant times, the last of them ``end``: (count, all parts
        concatenated).
        """
        return reference(self, count)

    def rate(self, t: float, y: np.ndarray) -> np.ndarray:
        """The right-hand side of the problem as one first-order system."""
        now, y = torch.tensor(t, dtype=torch.float64), torch.from_numpy(y)
        if self.equation == FIRST:
            return self.functions[0](now, y).numpy()
        q, p = y.chunk(2)
        first = p if self.equation == SECOND else self.functions[0](now, p)
        return torch.cat([first, self.functions[-1](now, q)]).numpy()


@lru_cache(maxsize=64)
def reference(problem: OdeProblem, count: int) -> np.ndarray:
    return np.stack([problem.closed(problem.end * (k + 1) / count) for k in range(count)])


def dop853(problem: OdeProblem, count: int = 1) -> np.ndarray:
    """The same from scipy's DOP853 at rtol 1e-13, restarted at each time (its dense output is of lower
    order); good to some 1e-13.
    """
    now, y, out = 0.0, np.concatenate([np.array(part) for part in problem.start]), []
    for k in range(count):
        t = problem.end * (k + 1) / count
        y = solve_ivp(problem.rate, (now, t), y, method="DOP853", rtol=1e-13, atol=1e-15).y[:, -1]
        now = t
        out.append(y)
    return np.stack(out)


def _linear(matrix: np.ndarray) -> Callable[[Tensor, Tensor], Tensor]:
    transposed = torch.tensor(matrix, dtype=torch.float64).T
    return lambda t, x: x @ transposed


def _flow(matrix: np.ndarray, start: list[float]) -> Callable[[float], np.ndarray]:
    return lambda t: expm(t * matrix) @ np.array(start)


def _exponential_rotation(t: Tensor, y: Tensor) -> Tensor:
    """The exponentials of a rotating vector: log y1 = cos t, log y2 = sin t from (e, 1)."""
    return torch.stack([-y[..., 0] * torch.log(y[..., 1]), y[..., 1] * torch.log(y[..., 0])], dim=-1)


def _pendulum(t: Tensor, y: Tensor) -> Tensor:
    return torch.stack([y[..., 1], -torch.sin(y[..., 0])], dim=-1)


def _pendulum_solution(t: float) -> np.ndarray:
    """From (0, 1.2): q = 2 asin(k sn), p = 2 k cn, k = 0.6."""
    sn, cn, _, _ = ellipj(t, 0.36)
    return np.array([2 * math.asin(0.6 * sn), 1.2 * cn])


def _quartic_solution(t: float) -> np.ndarray:
    """q'' = -q^3 from q = 1, v = 0: q = cn, v = -sn dn at parameter 1/2."""
    sn, cn, dn, _ = ellipj(t, 0.5)
    return np.array([cn, -sn * dn])


def _kepler(t: Tensor, q: Tensor) -> Tensor:
    return -q / (q * q).sum(-1, keepdim=True) ** 1.5


def _kepler_solution(t: float, e: float = 0.2) -> np.ndarray:
    """From the perihelion: Kepler's equation E - e sin E = t by Newton's method."""
    anomaly = t
    for _ in range(20):
        anomaly -= (anomaly - e * math.sin(anomaly) - t) / (1 - e * math.cos(anomaly))
    c, s, b = math.cos(anomaly), math.sin(anomaly), math.sqrt(1 - e * e)
    return np.array([c - e, b * s, -s / (1 - e * c), b * c / (1 - e * c)])


def _powers_f(t: Tensor, p: Tensor) -> Tensor:
    return torch.stack([-(p[..., 0] ** 2), p[..., 0] * p[..., 1] / 2], dim=-1)


def _exponentials_solution(t: float) -> np.ndarray:
    """H = e^p + e^q = E from q = p = 1/2: e^q = E / (1 + e^(-E t)), e^p = E - e^q = E / (1 + e^(E t))."""
    energy = 2 * math.exp(0.5)
    return math.log(energy) - np.log1p(np.exp([-energy * t, energy * t]))


NON_NORMAL = [[-0.5, 3.0], [0.0, -1.0]]  # eigenvectors 9 degrees apart
STIFFNESS = [[-0.3, 1.0], [0.0, 1.0]]  # of q'' = -K q: one growing and one oscillating mode, 52 degrees apart
COUPLING, SPRINGS = [[1.0, 2.0], [0.0, 1.0]], [[1.0, 3.0], [0.0, 2.0]]  # of q' = C p, p' = -S q
_A, _K, _C, _S, _0 = (
    np.array(NON_NORMAL),
    np.array(STIFFNESS),
    np.array(COUPLING),
    np.array(SPRINGS),
    np.zeros((2, 2)),
)

#: kind of equation -> class -> problem.
PROBLEMS: dict[str, dict[str, OdeProblem]] = {
    FIRST: {
        "autonomous": OdeProblem(
            "y' = (-y1 log y2, y2 log y1)",
            FIRST,
            (_exponential_rotation,),
            ((math.e, 1.0),),
            4.0,
            lambda t: np.exp([math.cos(t), math.sin(t)]),
            2.5,
            3.5,
        ),
        "non-autonomous": OdeProblem(
            "y' = y cos t",
            FIRST,
            (lambda t, y: torch.cos(t) * y,),
            ((1.0,),),
            6.0,
            lambda t: np.array([math.exp(math.sin(t))]),
            1.5,
            1.0,
        ),
        "non-normal": OdeProblem(
            "y' = A y, A = [[-1/2, 3], [0, -1]]",
            FIRST,
            (_linear(_A),),
            ((1.0, 1.0),),
            4.0,
            _flow(_A, [1.0, 1.0]),
            2.5,
            3.3,
        ),
        "Hamiltonian": OdeProblem(
            "pendulum in (q, p)", FIRST, (_pendulum,), ((0.0, 1.2),), 4.0, _pendulum_solution, 1.2, 1.0
        ),
    },
    SECOND: {
        "autonomous": OdeProblem(
            "q'' = -q^3", SECOND, (lambda t, q: -(q**3),), ((1.0,), (0.0,)), 4.0, _quartic_solution, 1.0, 3.0
        ),
        "non-autonomous": OdeProblem(
            "q'' = (cos^2 t - sin t) q",
            SECOND,
            (lambda t, q: (torch.cos(t) ** 2 - torch.sin(t)) * q,),
            ((1.0,), (1.0,)),
            4.0,
            lambda t: math.exp(math.sin(t)) * np.array([1.0, math.cos(t)]),
            3.0,
            1.3,
        ),
        "non-normal": OdeProblem(
            "q'' = -K q, K = [[-0.3, 1], [0, 1]]",
            SECOND,
            (_linear(-_K),),
            ((1.0, -0.5), (0.5, 1.0)),
            4.0,
            _flow(np.block([[_0, np.eye(2)], [-_K, _0]]), [1.0, -0.5, 0.5, 1.0]),
            5.0,
            1.5,
        ),
        "Hamiltonian": OdeProblem(
            "Kepler, e = 0.2",
            SECOND,
            (_kepler,),
            ((0.8, 0.0), (0.0, math.sqrt(1.5))),
            3.0,
            _kepler_solution,
            1.6,
            4.0,
        ),
    },
    SEPARABLE: {
        "autonomous": OdeProblem(
            "q' = (-p1^2, p1 p2 / 2), p' = (-q1^2, q1 q2 / 2)",
            SEPARABLE,
            (_powers_f, _powers_f),
            ((1.0, 1.0), (1.0, 1.0)),
            3.0,
            lambda t: np.array([1 / (1 + t), math.sqrt(1 + t)] * 2),
            1.1,
            2.0,
        ),
        "non-autonomous": OdeProblem(
            "q' = cos(t) e^(sin t) (1 + t) p, p' = -q e^(-sin t) / (1 + t)^2",
            SEPARABLE,
            (
                lambda t, p: torch.cos(t) * torch.exp(torch.sin(t)) * (1 + t) * p,
                lambda t, q: -q * torch.exp(-torch.sin(t)) / (1 + t) ** 2,
            ),
            ((1.0,), (1.0,)),
            3.0,
            lambda t: np.array([math.exp(math.sin(t)), 1 / (1 + t)]),
            1.5,
            2.2,
        ),
        "non-normal": OdeProblem(
            "q' = C p, p' = -S q, C = [[1, 2], [0, 1]], S = [[1, 3], [0, 2]]",
            SEPARABLE,
            (_linear(_C), _linear(-_S)),
            ((1.0, -0.5), (0.5, 1.0)),
            3.0,
            _flow(np.block([[_0, _C], [-_S, _0]]), [1.0, -0.5, 0.5, 1.0]),
            5.0,
            3.7,
        ),
        "Hamiltonian": OdeProblem(
            "H = e^p + e^q",
            SEPARABLE,
            (lambda t, p: torch.exp(p), lambda t, q: -torch.exp(q)),
            ((0.5,), (0.5,)),
            3.0,
            _exponentials_solution,
            3.3,
            3.3,
        ),
    },
}
