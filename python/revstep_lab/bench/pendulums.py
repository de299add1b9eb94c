"""Many pendulums: time a step and pendulum, beside scipy's ``solve_ivp``, which takes them in one joint call
or one by one, and beside heyoka's Taylor series, which takes as many at once as a register holds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from scipy.integrate import solve_ivp

from revstep import ode
from revstep.state import Float

from .packages import peer
from .runner import goal, measure, own_clock, per

H = 0.01
FIELD = ode.fields.Pendulum(equation="second")
STATES = {"float64": Float(torch.float64), "exact": None}
#: Our method, its order, scipy's method of that order or the next that it has, its order. What is compared is
#: the cost of a step; the errors are reported beside it.
PAIRS = (("verlet", 2, "RK23", 3), ("blanes_moan4", 4, "RK45", 5), ("kahan_li8", 8, "DOP853", 8))
WAYS = ("joint", "one by one")
#: Way -> order of our method -> how many times as long a step may take scipy at least, in floats; half of the
#: joint ones in exact states, which round every number to a grid and back.
FASTER = {"joint": {2: 20.0, 4: 10.0, 8: 10.0}, "one by one": {2: 20.0, 4: 20.0, 8: 20.0}}
#: Of heyoka's steps: one whose errors are between those of our orders 4 and 8, and its default, the roundoff.
TOLERANCES = (1e-12, 2.0**-52)


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


def least(way: str, order: int, state: str) -> float:
    """The goal of one of our methods beside scipy."""
    return FASTER[way][order] / (2.0 if (way, state) == ("joint", "exact") else 1.0)


class Taylor:
    """heyoka's adaptive Taylor integrator in its batch mode: one pendulum in each lane of a register, and one
    batch after the other. Compiled when it is made; each step is as long as its tolerance allows.

    Args:
        heyoka: the package.
        tol: of a step.
        threads: that share the batches, each with an integrator of its own.
    """

    def __init__(self, heyoka: Any, tol: float, threads: int):
        self.lanes = heyoka.recommended_simd_size()
        q, v = heyoka.make_vars("q", "v")
        equations, nothing = [(q, v), (v, -heyoka.sin(q))], np.zeros((2, self.lanes))
        batch = heyoka.taylor_adaptive_batch(equations, nothing, tol=tol)
        self.order = batch.order  # heyoka's choice for the tolerance
        self.batches = [batch, *(copy.deepcopy(batch) for _ in range(threads - 1))]

    def __call__(self, angles: np.ndarray, end: float) -> tuple[np.ndarray, float]:
        """``(angles at the end, mean number of steps)``."""
        missing = -angles.size % self.lanes
        starts = np.concatenate([angles, np.repeat(angles[-1:], missing)]).reshape(-1, self.lanes)
        parts = np.array_split(starts, len(self.batches))
        with ThreadPoolExecutor(len(self.batches)) as pool:
            done = list(pool.map(lambda b, rows: self._through(b, rows, end), self.batches, parts))
        found, taken = (np.concatenate([part[i] for part in done]).reshape(-1) for i in (0, 1))
        return found[: angles.size], float(np.mean(taken[: angles.size]))

    @staticmethod
    def _through(batch: Any, starts: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
        """Angles at the end and numbers of steps, in the shape of the starts."""
        found, taken = np.empty_like(starts), np.empty(starts.shape, dtype=int)
        for row, angles in enumerate(starts):
            batch.set_time(0.0)
            batch.state[0], batch.state[1] = angles, 0.0
            batch.propagate_until(end)
            found[row] = batch.state[0]
            taken[row] = [result[3] for result in batch.propagate_res]
        return found, taken


def run(pendulums: int, steps: int, sample: int, rounds: int) -> dict:
    """Rows in seconds a step and pendulum, with the error at the end; goals both ways. heyoka gets as many
    threads as torch has, scipy has none.
    """
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
    heyoka, reason = peer("heyoka")
    for tol in TOLERANCES if heyoka is not None else ():
        name = f"heyoka, batches, tolerance {tol:.0e}"
        made = Taylor(heyoka, tol, torch.get_num_threads())
        angle, taken = made(angles, steps * H)
        variants[name] = lambda made=made: made(angles, steps * H)
        counts[name] = taken * pendulums
        error = float(np.max(np.abs(angle - exact)))
        about[name] = {"order": made.order, "steps": round(taken, 1), "error": error}
    rows = per(measure(variants, rounds, warmup=1, clock=own_clock()), counts)
    found = {m.name: m for m in rows}
    goals = [
        goal(
            f"time a step and pendulum, solve_ivp {theirs} (order {p}), {way} / revstep {ours} (order {k}),"
            f" {state}",
            _times(found, theirs, way, ours, state),
            least(way, k, state),
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
        "skipped": [] if heyoka is not None else [{"what": "heyoka", "reason": reason}],
    }


def _times(found: dict, theirs: str, way: str, ours: str, state: str) -> float:
    return found[f"solve_ivp {theirs}, {way}"].ratios[f"revstep {ours}, {state}"]
