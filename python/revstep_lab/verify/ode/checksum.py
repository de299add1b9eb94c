"""One flipped bit of the last states: does the way back notice?"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from revstep.errors import ReconstructionError, StateOverflowError
from revstep.ode import Solution, compositions, integrate
from revstep.ode.methods import Method, Micro, SplittingMethod
from revstep.verify._checks import Result

from .gradients import STATE, T0, H, leaves, problem, start

NAME = "checksum"
STEPS, FLIPS = 3, 4


def _flips(slots: tuple[Tensor, Tensor], seed: int) -> Iterator[None]:
    """FLIPS times one of the low 40 bits of one element, put back afterwards; unseen by autograd's version
    counter, as a fault in memory would be.
    """
    generator = torch.Generator().manual_seed(seed)
    for trial in range(FLIPS):
        victim = slots[trial % 2].numpy().reshape(-1)
        index, bit = (int(torch.randint(n, (), generator=generator)) for n in (victim.size, 40))
        victim[index] ^= 1 << bit
        yield
        victim[index] ^= 1 << bit


def in_reverse(method: Method, equation: str) -> Result:
    """``Solution.reverse()`` must not arrive at the start from the changed states, and must from the
    unchanged ones.
    """
    field, _ = problem(equation)
    with torch.no_grad():
        xs = leaves(equation)
        run = integrate(
            field,
            start(xs),
            scheme=method,
            h=H,
            steps=STEPS,
            t0=T0,
            args=(xs[-3],),
            state=STATE,
            loop="python",
        )
        missed = int(run.reverse().exact is not True)
        for _ in _flips(run.final, 0):
            missed += _arrives(run)
        missed += run.reverse().exact is not True
    return Result(
        "one flipped bit is seen when reversed",
        missed == 0,
        missed,
        0,
        "missed flips",
        f"{FLIPS} flips; the unchanged run returns before and after",
    )


def _arrives(run: Solution) -> bool:
    try:
        return run.reverse().exact is not False
    except (ReconstructionError, StateOverflowError):
        return False


def in_backward(method: Method, equation: str) -> Result:
    """Backward must raise ReconstructionError: gradients of another trajectory are never returned."""
    field, _ = problem(equation)
    xs = leaves(equation)
    run = integrate(
        field,
        start(xs),
        scheme=method,
        h=H,
        steps=STEPS,
        t0=T0,
        args=(xs[-3],),
        state=STATE,
        save_every=2,
        loop="python",
    )
    loss = run.ys.square().sum()
    missed = 0
    for _ in _flips(run.final, 1):
        try:
            torch.autograd.grad(loss, xs[0], retain_graph=True)
            missed += 1
        except (ReconstructionError, StateOverflowError):
            pass
    try:
        torch.autograd.grad(loss, xs[0])  # the unchanged run has its gradient
    except ReconstructionError:
        missed += 1
    return Result(
        "one flipped bit is found in backward",
        missed == 0,
        missed,
        0,
        "missed flips",
        f"{FLIPS} flips; the unchanged run has its gradient",
    )


def measure(method: Method, equation: str) -> list[Result]:
    """Both ways back."""
    return [in_reverse(method, equation), in_backward(method, equation)]


class Restless(SplittingMethod):
    """Its coefficients are others each time they are asked for: no run finds its way back."""

    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        first, *rest = super().micros(n, equation)
        return (replace(first, gamma_coef=first.gamma_coef * (1 + 1e-9 * next(_counter))), *rest)


_counter = itertools.count()
MUTANTS = {"coefficients that differ on the way back": (Restless(compositions.get("verlet")), "second")}
