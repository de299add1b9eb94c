"""Many pendulums: time a step and pendulum, beside scipy's ``solve_ivp``, which takes them in one joint call
or one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp

from revstep import ode
from revstep.state import Float

from .runner import goal, measure, per

H = 0.01
FIELD = ode.fields.Pendulum(equation="second")
STATES = {"float64": Float(torch.float64), "exact": None}
#: Our method, its order, scipy's method of that order or the next that it has, its order. What is compared is
#: the cost of a step; the errors are reported beside it.
PAIRS = (("verlet", 2, "RK23", 3), ("blanes_moan4", 4, "RK45", 5), ("kahan_li8", 8, "DOP853", 8))
FASTER = 20.0
WAYS = ("joint", "one by one")


def start(pendulums: int) -> np.ndarray:
    """Angles at rest: small swings up to nearly upright."""
    return np.linspace(0.1, 3.0, pendulums) if pendulums > 1 else np.array([1.0])


def rhs(t: float, y: np.ndarray) -> np.ndarray:
    """(q, v)' of all pendulums of y, vectorised, without temporaries."""
    half, out = y.size // 2, np.empty_like(y)
    out[:half] = y[half:]
    np.sin(y[:half], out=out[half:])
    np.negative(out[half:], out=out[half:])
    return out


def _solve(method: str, angles: np.ndarray, steps: int, whole: bool = False) -> Any:
    """Steps of H, every one accepted (the tolerances are open): scipy at its cheapest. ``whole``: all steps
    come back, not only the end.
    """
    end = steps * H
    found = solve_ivp(
        rhs,
        (0.0, end),
        np.concatenate([angles, np.zeros_like(angles)]),
        method=method,
        first_step=H,
        max_step=H,
        rtol=1e3,
        atol=1e3,
        t_eval=None if whole else [end],
    )
    if found.status != 0:
        raise RuntimeError(f"solve_ivp with {method}: {found.message}")
    return found


def reference(angles: np.ndarray, steps: int) -> np.ndarray:
    """Angles at the end by DOP853 at the tightest tolerance it takes."""
    y = np.concatenate([angles, np.zeros_like(angles)])
    return solve_ivp(
        rhs, (0.0, steps * H), y, method="DOP853", rtol=2.3e-14, atol=1e-15, max_step=H, t_eval=[steps * H]
    ).y[: angles.size, -1]


def _ours(method: str, state: str, angles: np.ndarray, steps: int) -> ode.Solution:
    q = angles[:, None]
    return ode.integrate(
        FIELD, (q, np.zeros_like(q)), scheme=method, h=H, steps=steps, state=STATES[state], loop="compiled"
    )


def run(pendulums: int, steps: int, sample: int, rounds: int) -> dict:
    """Rows in seconds a step and pendulum, with the error at the end; goals both ways."""
    angles = start(pendulums)
    some = angles[np.linspace(0, pendulums - 1, sample).astype(int)]
    exact = reference(angles, steps)
    variants: dict[str, Callable[[], Any]] = {}
    counts: dict[str, float] = {}
    about: dict[str, dict] = {}
    for ours, order, theirs, their_order in PAIRS:
        for state in STATES:
            name = f"revstep {ours}, {state}"
            variants[name] = lambda m=ours, s=state: _ours(m, s, angles, steps)
            counts[name] = steps * pendulums
            about[name] = {
                "order": order,
                "steps": steps,
                "error": float(np.max(np.abs(variants[name]().ys[-1][:, 0] - exact))),
            }
        whole = _solve(theirs, angles, steps, whole=True)
        taken = len(whole.t) - 1
        for way in WAYS:
            name = f"solve_ivp {theirs}, {way}"
            variants[name] = (
                (lambda m=theirs: _solve(m, angles, steps))
                if way == "joint"
                else (lambda m=theirs: [_solve(m, some[i : i + 1], steps) for i in range(sample)])
            )
            counts[name] = taken * (pendulums if way == "joint" else sample)
            about[name] = {
                "order": their_order,
                "steps": taken,
                "error": float(np.max(np.abs(whole.y[:pendulums, -1] - exact))),
            }
    rows = per(measure(variants, rounds, warmup=1), counts)
    found = {m.name: m for m in rows}
    goals = [
        goal(
            f"time a step and pendulum, solve_ivp {theirs} (order {p}), {way} / revstep {ours} (order {k}),"
            f" {state}",
            _times(found, theirs, way, ours, state),
            FASTER,
            True,
        )
        for ours, k, theirs, p in PAIRS
        for way in WAYS
        for state in STATES
    ]
    return {
        "pendulums": pendulums,
        "sample": sample,
        "rows": [{**m.to_dict(), **about[m.name]} for m in rows],
        "goals": goals,
        "skipped": [],
    }


def _times(found: dict, theirs: str, way: str, ours: str, state: str) -> float:
    return found[f"solve_ivp {theirs}, {way}"].ratios[f"revstep {ours}, {state}"]
