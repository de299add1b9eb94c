"""Measures the figures of the guide pages and writes docs/benchmarks/guides.json; ``python docs/generate.py``
then puts them into the pages.

Usage: python docs/measure.py             (needs revstep and scipy; a few minutes on one core)
       python docs/measure.py work        (some parts: work, energy, rounding, floats)

Nothing here is a timing: on another machine the same numbers come out, up to the last digits where a sine or
a matrix product is involved.
"""

from __future__ import annotations

import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import revstep
from revstep import ode, verify
from revstep._cli.shared import write_json
from revstep.errors import StateOverflowError
from revstep_lab.bench.runner import environment
from revstep_lab.verify.ode import drift

FILE = Path(__file__).resolve().parent / "benchmarks" / "guides.json"
#: Evaluations of the field that every method may spend on the whole interval.
BUDGETS = (3_000, 30_000, 300_000)
ORBITS, LOTKA_END = 10, 20.0


def kepler_start(e: float) -> tuple[np.ndarray, np.ndarray]:
    """At the pericentre, period 2 pi."""
    return np.array([1.0 - e, 0.0]), np.array([0.0, math.sqrt((1.0 + e) / (1.0 - e))])


# ---- work and precision ----


def kepler_error(method: Any, evaluations: int) -> float:
    """Ten orbits of eccentricity 0.3 end where they began."""
    q0, v0 = kepler_start(0.3)
    return spend(
        method, ode.fields.Kepler(equation="second"), (q0, v0), 2 * math.pi * ORBITS, evaluations, q0
    )


def lotka_error(method: Any, evaluations: int) -> float:
    return spend(
        method, ode.fields.LotkaVolterra(), np.array([1.2, 0.7]), LOTKA_END, evaluations, lotka_reference()
    )


def lotka_reference() -> np.ndarray:
    return ode.integrate(
        ode.fields.LotkaVolterra(), np.array([1.2, 0.7]), scheme="kahan_li8", h=LOTKA_END / 8000, steps=8000
    ).ys[-1]


def spend(method: Any, field: Any, y0: Any, end: float, evaluations: int, exact: np.ndarray) -> float:
    """Error at the end, in the 2-norm, with this many evaluations; inf where the run leaves the range."""
    steps = evaluations // method.claims(field.equation).evaluations
    try:
        run = ode.integrate(field, y0, scheme=method, h=end / steps, steps=steps, loop="compiled")
    except StateOverflowError:
        return math.inf
    return float(np.linalg.norm(run.ys[-1] - exact))


#: The same methods with less of the damping that they have an option for.
DAMPED = {
    "reversible_rk4, lam = 0.9": ode.ReversibleRK("rk4", lam=0.9),
    "reversible_rk4, lam = 0.999": ode.ReversibleRK("rk4", lam=0.999),
    "kahan_li8, couple = 0": ode.methods.SplittingMethod(ode.available()["kahan_li8"].data, couple=0.0),
    "verlet, couple = 0": ode.methods.SplittingMethod(ode.available()["verlet"].data, couple=0.0),
}


def work() -> dict[str, Any]:
    """Error at equal cost: equation -> method -> an error for each budget."""
    methods = {name: m for name, m in ode.available().items() if not m.claims(m.equations[0]).in_expectation}
    problems: dict[str, Callable] = {"second": kepler_error, "first": lotka_error}
    errors = {
        eq: {n: [f(m, b) for b in BUDGETS] for n, m in methods.items() if eq in m.equations}
        for eq, f in problems.items()
    }
    return {
        "budgets": list(BUDGETS),
        "errors": errors,
        "decay": {name: decay(m) for name, m in (methods | DAMPED).items() if "first" in m.equations},
    }


DECAY_TIMES = (10, 20, 40)


def decay(method: Any) -> list[float]:
    """y' = -y from 1 with h = 0.1: its magnitude at three times, in truth exp(-t). A second solution that a
    method carries along may grow as exp(t).
    """
    field, h = ode.fields.Linear([[-1.0]]), 0.1
    counts = [round(t / h) for t in DECAY_TIMES]
    run = ode.integrate(
        field,
        np.array([1.0]),
        scheme=method,
        h=h,
        steps=counts[-1],
        state=revstep.Float(torch.float64),
        save_every=1,
        loop="compiled",
    )
    return [abs(float(run.ys[n, 0])) for n in counts]


# ---- energy over a million steps ----


ENERGY = [
    ("Kepler, e = 0.1", "separable", ("hamiltonian", "verlet", "yoshida4", "kahan_li6", "kahan_li8")),
    ("oscillator", "separable", ("verlet", "yoshida4")),
    ("oscillator", "first", ("midpoint", "reversible_heun2", "reversible_bosh3", "reversible_rk4")),
    ("Lotka-Volterra", "first", ("midpoint", "verlet", "kahan_li6", "reversible_rk4")),
]
ENERGY_STEPS = (1_000, 10_000, 100_000, 1_000_000)


def energy(lengths: tuple[int, ...] = ENERGY_STEPS) -> list[dict[str, Any]]:
    """Largest relative change of the energy (of Lotka-Volterra: its invariant) up to each length, and the
    slope of the whole run.
    """
    rows = []
    for problem, equation, names in ENERGY:
        for name in names:
            method = ode.available()[name]
            found = (
                oscillator(method, equation, lengths[-1])
                if problem == "oscillator"
                else next(iter(drift.series(method, equation, lengths[-1]).values()))
            )
            n, change = np.round(np.array(found.t) / found.h), np.abs(found.change)
            slope, error = found.trend()
            rows.append(
                {
                    "problem": problem,
                    "method": name,
                    "symplectic": method.claims(equation).symplectic,
                    "h": found.h,
                    "steps": list(lengths),
                    "change": [float(change[n <= length].max()) for length in lengths],
                    "slope": slope,
                    "slope_error": error,
                }
            )
    return rows


def oscillator(method: Any, equation: str, steps: int) -> drift.Series:
    """As y' = A y or as a Hamiltonian system, at the step and sampling of the others."""
    one, none, h = np.array([1.0]), np.array([0.0]), 0.1
    field, y0 = (
        (ode.fields.Linear([[0.0, 1.0], [-1.0, 0.0]]), np.array([1.0, 0.0]))
        if equation == "first"
        else (ode.fields.Harmonic(), (one, none))
    )
    run = ode.integrate(
        field, y0, scheme=method, h=h, steps=steps, save_every=min(drift.EVERY, steps), loop="compiled"
    )
    y = run.ys if run.second is None else np.concatenate([run.ys, run.second], axis=-1)
    twice = (y * y).sum(-1)
    return drift.Series("oscillator", "energy", h, tuple(run.ts), tuple(twice / twice[0] - 1.0))


ROUNDING = {
    "`Float(torch.float64)`": revstep.Float(torch.float64),
    "`FixedPoint(64, 55)`, the default": revstep.FixedPoint(64, 55),
    "`FixedPoint(64, 40)`": revstep.FixedPoint(64, 40),
    "`FixedPoint(64, 30)`": revstep.FixedPoint(64, 30),
}
ROUNDING_STEPS = (10_000, 100_000, 1_000_000)


def rounding(lengths: tuple[int, ...] = ROUNDING_STEPS) -> dict[str, Any]:
    """Kepler, e = 0.1, at a step whose own energy error is below rounding: what is left is arithmetic's."""
    field, y0, method, h = ode.fields.Kepler(), kepler_start(0.1), "kahan_li8", 2 * math.pi / 200
    out = {}
    for name, state in ROUNDING.items():
        run = ode.integrate(
            field,
            y0,
            scheme=method,
            h=h,
            steps=lengths[-1],
            state=state,
            scale=2.0,
            save_every=97,
            loop="compiled",
        )
        change = np.abs(run.energy / run.energy[0] - 1.0)
        n = np.round(run.ts / h)
        back = run.reverse()
        out[name] = {
            "energy": [float(change[n <= length].max()) for length in lengths],
            "returned": bool(back.exact),
            "off": float(
                max(np.abs(back.ys[-1] - run.ys[0]).max(), np.abs(back.momenta[-1] - run.momenta[0]).max())
            ),
        }
    return {"steps": list(lengths), "method": method, "h": h, "states": out}


# ---- float states ----

WIDTH, DEPTHS = 16, (8, 32, 128)


class Layer(torch.nn.Module):
    """x A^T, or tanh(x A^T) A."""

    def __init__(self, a: torch.Tensor, curved: bool):
        super().__init__()
        self.a, self.curved = torch.nn.Parameter(a.clone()), curved

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x @ self.a.T
        return torch.tanh(y) @ self.a if self.curved else y


def layers(kind: str, count: int) -> list[Layer]:
    """``oscillating``: a skew matrix; ``growing``: a symmetric one; ``network``: two matrices and a tanh. All
    with Lipschitz constant 1.
    """
    b = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = {"oscillating": b - b.T, "growing": b + b.T, "network": b}[kind]
    a = a / torch.linalg.matrix_norm(a, 2)
    return [Layer(a.float(), kind == "network") for _ in range(count)]


FLOATS = [
    (kind, scheme, depth)
    for kind in ("oscillating", "growing", "network")
    for scheme in (
        revstep.Midpoint(h=0.1),
        revstep.Hamiltonian(h=0.1),
        revstep.Leapfrog(h=0.1),
        revstep.Blend(c=0.9, h=0.1),
        revstep.Blend(c=0.5, h=0.1),
    )
    for depth in DEPTHS
]


def float_case(kind: str, scheme: Any, depth: int) -> dict[str, Any]:
    """Error of the worst rebuilt state, in units of what each rule says."""
    blocks: list = layers(kind, depth)
    if scheme.halves == 2:
        blocks = list(zip(blocks, layers(kind, depth)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack = revstep.ReversibleStack(blocks, scheme, state=revstep.Float(max_error=math.inf))
    x = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(1))
    amplified = verify.amplification(stack, x)
    states = stack.states(x)
    grown = max(float(s.norm()) for s in states) / float(x.norm())
    known = 0 < scheme.coefficients(0).alpha
    bound = verify.float_bound(scheme, stack.steps, 1.0) * grown if known else None
    errors = verify.drift(stack, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = max(verify.drift(stack, x))
    return {
        "field": kind,
        "scheme": str(scheme),
        "steps": stack.steps,
        "factor": amplified.factor,
        "expected": amplified.error(),
        "float32": max(errors),
        "start": errors[0],
        "bound": bound,
        "expected bf16": amplified.error(torch.float32, torch.bfloat16),
        "bf16": narrow,
    }


def floats() -> list[dict[str, Any]]:
    return [float_case(*case) for case in FLOATS]


PARTS = {"work": work, "energy": energy, "rounding": rounding, "floats": floats}


def main(arguments: list[str]) -> int:
    if not set(arguments) <= set(PARTS):
        print(__doc__, file=sys.stderr)
        return 2
    record = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for name in arguments or PARTS:
        record[name] = {"environment": environment(), "data": PARTS[name]()}
        write_json(str(FILE), record)
        print(f"{name}: measured")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
