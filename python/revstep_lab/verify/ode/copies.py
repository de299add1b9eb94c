"""The distance of the two copies of y that some methods keep: it stays within what the method claims, where
the flow contracts and where it oscillates.

The copies start equal and a step of order p sets them O(h**(p+1)) apart. Whether that dies out, adds up or
grows is the method's doing: the flow multiplies the distance by the inverse of what it does to the
solution, the coupling by a factor of its own. So over many steps the distance has to end no further than it
was in the run's first part, and below the claimed ``apart_limit``.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from revstep.errors import StateOverflowError
from revstep.ode import compositions
from revstep.ode.methods import Method, Micro, SplittingMethod
from revstep.verify._checks import Result

from .bounds import walker
from .oracle import altered

NAME = "copies"
H, STEPS = 1 / 16, 640
#: Of the run, the part whose largest distance is the measure of what follows: ten units of time, more than
#: a turn of either oscillator.
FIRST = 160
#: An oscillation of the distance is not at its largest in each of its turns.
GROWTH = 2.0
#: What rounding sets two copies apart by, in units of 2**-52, where they would agree otherwise.
UNITS = 2.0**8


def _fields(t: Tensor, y: Tensor) -> Tensor:
    """Two systems of two components: a driven oscillator damped at rates -1 +- i, in which a copy left
    alone strays by exp(40), and a pendulum.
    """
    (q, v), (x, p) = y[0], y[1]
    return torch.stack([torch.stack([v, torch.cos(2 * t) - 2 * v - 2 * q]), torch.stack([p, -torch.sin(x)])])


NAMES, START = ("contracting", "oscillating"), ((0.5, 0.0), (0.0, 1.2))


def distances(method: Method, equation: str) -> Tensor:
    """(steps, systems): the largest ``|u - v|`` of a component after each step; inf once it is not finite."""
    y = torch.tensor(START, dtype=torch.float64)
    w = walker(method, equation, (_fields,), method.begin(equation, y, H), H, steps=STEPS)
    found = torch.full((STEPS, len(NAMES)), math.inf, dtype=torch.float64)
    for n in range(STEPS):
        try:
            w.forward()
        except StateOverflowError:
            break
        found[n] = (w.states[0] - w.states[1]).abs().amax(dim=-1)
    return found


def measure(method: Method, equation: str) -> list[Result]:
    if not method.copies(equation):
        why = "the slots do not hold y at the same time"
        return [
            Result(
                "no two copies",
                method.apart_limit is None or equation != "first",
                0.0,
                math.inf,
                "distance of the copies",
                why,
            )
        ]
    found, results = distances(method, equation), []
    for name, apart in zip(NAMES, found.T, strict=True):
        first, last = float(apart[:FIRST].max()), float(apart[-FIRST:].max())
        bound = min(method.apart_limit, GROWTH * first + UNITS * 2.0**-52)
        ends = f"at most {first:.1e} in the first {FIRST}, {last:.1e} in the last"
        why = f"{STEPS} steps of {H:g}: {ends}; claimed limit {method.apart_limit:g}"
        claim = f"the copies stay together, {name}"
        results.append(Result(claim, last <= bound, last, bound, "distance of the copies", why))
    return results


def _flipped(micros: tuple[Micro, ...]) -> tuple[Micro, ...]:
    """The coupling with its sign turned: the copies are driven apart, their mean kept."""
    return tuple(replace(m, alpha=2 - m.alpha, beta=-m.beta) if m.beta else m for m in micros)


def _uncoupled(micros: tuple[Micro, ...]) -> tuple[Micro, ...]:
    return tuple(replace(m, alpha=1.0, beta=0.0) for m in micros)


_BARE = SplittingMethod(compositions.get("blanes_moan6"), couple=0.0)
MUTANTS = {
    "copies that are not drawn together": (_BARE, "first"),
    "the coupling left out": (altered("verlet", lambda micros: micros[:-2]), "first"),
    "the coupling with its sign flipped": (altered("kahan_li6", _flipped), "first"),
    "a Runge-Kutta method whose copies are not coupled": (altered("reversible_dopri5", _uncoupled), "first"),
}
