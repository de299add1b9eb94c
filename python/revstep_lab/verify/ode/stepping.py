"""Steps of a method on its slots in float64, through the library's own loop, for properties that live on slots rather than on solutions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from revstep.ode.loop import Walker
from revstep.ode.methods import Method
from revstep.ode.problem import Grid, Problem
from revstep.state import Float

from .problems import OdeProblem

FLOAT64 = Grid(Float(torch.float64), (1.0, 1.0))


def walker(
    method: Method, equation: str, functions: Sequence[Callable], slots: Sequence[Tensor], h: float, t0: float = 0.0, n: int = 0, steps: int = 0
) -> Walker:
    """A walker at step ``n`` of a float64 run."""
    everywhere = (-math.inf, math.inf)  # the steps are those of the method, wherever they look
    problem = Problem(
        method, equation, tuple(functions), FLOAT64, torch.float64, h, t0, steps, (0, steps), interval=everywhere
    )  # fmt: skip
    return Walker(problem, [s.clone() for s in slots], (), n)


def begin(method: Method, problem: OdeProblem, h: float) -> tuple[Tensor, Tensor]:
    """The two slots at step 0 of a problem."""
    return method.begin(problem.equation, problem.y0(), h)
