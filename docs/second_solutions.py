"""How strongly two copies of y have to be coupled: the tables of note 14 in docs/notes, measured on the
public problems of the tests and on Arenstorf's orbit.

``python docs/second_solutions.py`` prints them as Markdown. Each problem is run by each method at each
coupling with twice the steps that the tests begin with; errors are relative to the solution. *Off by 10*
counts the problems whose error is more than ten times (and 1e-11 more than) that of the best coupling,
*lost* those that left the range or are wrong by more than 1 %. *Apart* is the largest distance of the
copies at the end, as a share of the solution, among the runs that are right to 1 %, and the smallest among
those that are not.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "ode"))

from public_first_order import FIRST_ORDER, OSCILLATORS
from test_public_problems import STEPS, compiled, error, run

from revstep import ode
from revstep.errors import StateOverflowError
from revstep.ode.methods import Method, ReversibleRK, SplittingMethod

LAMS = (0.5, 0.75, 0.9, 0.99, 0.999)
COUPLES = (0.0, 0.01, 0.1, 0.25, 0.5, 0.6, 0.75)
BASES = ("euler", "heun2", "bosh3", "rk4", "dopri5")
DATA = ("verlet", "yoshida4", "blanes_moan4", "blanes_moan6", "kahan_li8")
LOST = 1e-2


def ran(problem, method: Method, steps: int) -> tuple[float, float]:
    """Error and distance of the copies at the end; inf where the run left the range."""
    try:
        found = run(problem, compiled(problem), method, steps)
    except StateOverflowError:
        return math.inf, math.inf
    u, v = (s.to(torch.float64) for s in found.final)
    size = max(float(u.abs().max()), float(v.abs().max()))
    return error(problem, found), float((u - v).abs().max()) / size if size else 0.0


def table(head: str, rows: dict[str, Callable[[float], Method]], values: tuple[float, ...]) -> None:
    print(f"| method | {head} | off by 10 | lost | median error | apart, right | apart, lost |")
    print("|---|---|---|---|---|---|---|")
    for name, make in rows.items():
        order = make(values[0]).claims("first").order
        steps = [int(2 * p.steps * STEPS[order]) for p in FIRST_ORDER]
        found = np.array([[ran(p, make(v), n) for v in values] for p, n in zip(FIRST_ORDER, steps)])
        errors, apart = found[..., 0], found[..., 1]
        best = errors.min(axis=1)
        for k, v in enumerate(values):
            off, lost = int((errors[:, k] > 10 * best + 1e-11).sum()), ~(errors[:, k] < LOST)
            right = f"{apart[~lost, k].max():.1e}" if (~lost).any() else "-"
            wrong = f"{apart[lost, k].min():.1e}" if lost.any() else "-"
            print(
                f"| `{name}` | {v:g} | {off} | {int(lost.sum())} | {np.median(errors[:, k]):.1e} | {right} |"
                f" {wrong} |",
                flush=True,
            )


def arenstorf(steps: int = 100_000) -> None:
    """One orbit, after which the exact solution is at its start again."""
    import dataclasses

    orbit = next(p for p in OSCILLATORS if p.name == "arenstorf_short")
    whole = dataclasses.replace(orbit, end=17.0652165601579625589, closed=lambda t: orbit.start[0])
    print(f"| method | coupling | Arenstorf's orbit, {steps:,} steps, off by |\n|---|---|---|")
    for lam in LAMS:
        print(
            f"| `reversible_dopri5` | lam = {lam} |"
            f" {ran(whole, ReversibleRK('dopri5', lam), steps)[0]:.1e} |",
            flush=True,
        )
    for couple in COUPLES:
        method = SplittingMethod(ode.available()["blanes_moan6"].data, couple)
        print(f"| `blanes_moan6` | couple = {couple} | {ran(whole, method, steps)[0]:.1e} |", flush=True)


def main() -> None:
    print(f"{len(FIRST_ORDER)} problems y' = f(t, y)\n")
    table("lam", {f"reversible_{b}": lambda v, b=b: ReversibleRK(b, lam=v) for b in BASES}, LAMS)
    print()
    table(
        "couple",
        {d: lambda v, d=d: SplittingMethod(ode.available()[d].data, couple=v) for d in DATA},
        COUPLES,
    )
    print()
    arenstorf()


if __name__ == "__main__":
    main()
