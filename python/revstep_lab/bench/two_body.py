"""Two bodies on an ellipse: steps per second, energy and the way back, beside REBOUND's leapfrog
and JANUS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from revstep import ode
from revstep.state import Float, StateFormat

from .packages import peer
from .runner import goal, measure, own_clock, per

MASSES, ECCENTRICITY, DT = (1.0, 1e-3), 0.1, 1e-3
FIELD = ode.fields.NBody(masses=MASSES)
#: Name -> method and state. None is the default: 64-bit fixed point in units of the start.
OURS: dict[str, tuple[str, StateFormat | None]] = {
    "revstep verlet, float64": ("verlet", Float(torch.float64)),
    "revstep verlet, exact": ("verlet", None),
    "revstep kahan_li6, exact": ("kahan_li6", None),
}
#: JANUS of order 6 has the nine stages of kahan_li6.
THEIRS = {"REBOUND leapfrog": "leapfrog", "REBOUND JANUS, order 6": "janus"}
#: At least so many times the steps per second.
FASTER = {
    ("revstep verlet, float64", "REBOUND leapfrog"): 3.0,
    ("revstep kahan_li6, exact", "REBOUND JANUS, order 6"): 2.5,
}
ENERGY_HELD = 1e-12


def start() -> tuple[np.ndarray, np.ndarray]:
    """``(q, v)``, (2, 3) each: relative orbit of semi-major axis 1 (G = 1) at the pericentre, centre of mass
    at rest.
    """
    total = sum(MASSES)
    distance, speed = 1 - ECCENTRICITY, math.sqrt(total * (1 + ECCENTRICITY) / (1 - ECCENTRICITY))
    share = np.array([-MASSES[1], MASSES[0]]) / total
    return share[:, None] * [distance, 0.0, 0.0], share[:, None] * [0.0, speed, 0.0]


def integrate(
    method: str, state: StateFormat | None, steps: int, save_every: int | None = None
) -> ode.Solution:
    return ode.integrate(
        FIELD, start(), scheme=method, h=DT, steps=steps, state=state, save_every=save_every, loop="compiled"
    )


def there_and_back(method: str, state: StateFormat | None, steps: int) -> dict:
    """``steps`` steps and as many back. Energy is looked at every 1,000 steps (at the end of a shorter run).

    Returns:
        largest ``|E/E_0 - 1|``, the number of slot components whose bits differ from the start's, and the
        largest difference in value.
    """
    run = integrate(method, state, steps, save_every=min(steps, 1000))
    back = run.reverse()
    return {
        "energy_error": float(np.max(np.abs(run.energy / run.energy[0] - 1))),
        "differing": sum(
            int((a.view(torch.int64) != b.view(torch.int64)).sum()) for a, b in zip(run.start, back.final)
        ),
        "difference": _difference((back.ys[-1], back.second[-1]), (run.ys[0], run.second[0])),
    }


def _difference(a: tuple[np.ndarray, ...], b: tuple[np.ndarray, ...]) -> float:
    return max(float(np.max(np.abs(x - y))) for x, y in zip(a, b))


def _energy_error(q: np.ndarray, v: np.ndarray) -> float:
    first = FIELD.energy(*start())
    return float(abs(FIELD.energy(q, v) / first - 1))


def simulation(rebound: Any, integrator: str) -> Any:
    """The same start in REBOUND. JANUS keeps its documented grid: 1e-16 for positions and velocities."""
    made = rebound.Simulation()
    for mass, (x, y, z), (vx, vy, vz) in zip(MASSES, *start()):
        made.add(m=mass, x=x, y=y, z=z, vx=vx, vy=vy, vz=vz)
    made.integrator, made.dt = integrator, DT
    if integrator == "janus":
        made.integrator.order, made.integrator.scale_pos, made.integrator.scale_vel = 6, 1e-16, 1e-16
    return made


def _state(made: Any) -> tuple[np.ndarray, np.ndarray]:
    return np.array([[p.x, p.y, p.z] for p in made.particles]), np.array(
        [[p.vx, p.vy, p.vz] for p in made.particles]
    )


def rebound_there_and_back(rebound: Any, integrator: str, steps: int) -> dict:
    """Counted from the state after the first step, as REBOUND's own test does: before it JANUS has rounded
    nothing to its grid.
    """
    made = simulation(rebound, integrator)
    made.steps(1)
    first = _state(made)
    made.steps(steps - 1)
    last = _state(made)
    made.dt = -DT
    made.steps(steps - 1)
    back = _state(made)
    differing = sum(int((a != b).sum()) for a, b in zip(first, back))
    return {
        "energy_error_at_end": _energy_error(*last),
        "differing": differing,
        "difference": _difference(first, back),
    }


def run(steps: int, return_steps: int, rounds: int) -> dict:
    """Rows in seconds a step, with energy error at the end and the way back; the long way back; goals; what
    was skipped.
    """
    rebound, reason = peer("rebound")
    variants: dict[str, Callable[[], Any]] = {
        name: lambda m=m, s=s: integrate(m, s, steps) for name, (m, s) in OURS.items()
    }
    if rebound is not None:
        variants |= {name: lambda i=i: simulation(rebound, i).steps(steps) for name, i in THEIRS.items()}
    rows = per(measure(variants, rounds, clock=own_clock()), dict.fromkeys(variants, steps))
    outcomes = {name: _ours(m, s, steps) for name, (m, s) in OURS.items()}
    if rebound is not None:
        outcomes |= {name: rebound_there_and_back(rebound, i, steps) for name, i in THEIRS.items()}
    found = {m.name: m for m in rows}
    goals = [
        goal(f"steps/s of {ours} / {theirs}", found[theirs].ratios[ours], least, True)
        for (ours, theirs), least in FASTER.items()
        if theirs in found
    ]
    long = there_and_back("kahan_li6", None, return_steps)
    there = f"kahan_li6, exact, {return_steps:,} steps and back"
    goals += [
        goal(
            f"{there}: components of the start that did not return bit for bit", long["differing"], 0, False
        ),
        goal(
            f"{there}: largest |dE/E|, looked at every 1,000 steps", long["energy_error"], ENERGY_HELD, False
        ),
    ]
    skipped = (
        []
        if rebound is not None
        else [{"what": f"{' and '.join(THEIRS)}, and the goals beside them", "reason": reason}]
    )
    measured = [{**m.to_dict(), "steps_per_second": 1 / m.p50, **outcomes[m.name]} for m in rows]
    return {
        "steps": steps,
        "rows": measured,
        "there_and_back": {"steps": return_steps, **long},
        "goals": goals,
        "skipped": skipped,
    }


def _ours(method: str, state: StateFormat | None, steps: int) -> dict:
    end = integrate(method, state, steps)
    back = there_and_back(method, state, steps)
    return {
        "energy_error_at_end": _energy_error(end.ys[-1], end.second[-1]),
        "differing": back["differing"],
        "difference": back["difference"],
    }
