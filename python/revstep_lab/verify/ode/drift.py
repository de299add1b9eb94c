"""Energy and first integrals over a million steps of the compiled loop: bounded, or secular with a fitted
slope.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from revstep.errors import StateOverflowError
from revstep.ode import compositions, fields, integrate
from revstep.ode.methods import Method, Micro, SplittingMethod, TwoStep
from revstep.verify._checks import Result

NAME = "drift"
STEPS, BLOCKS = 1_000_000, 40
#: Steps between samples: 7.75 turns of the settings below, so that the samples do not keep coming at the same
#: place of a turn.
EVERY = 487
#: Standard errors of the fitted slope that chance may be: four of a normal distribution are passed once in
#: 16,000.
SIGMAS = 4.0
#: Of methods that draw their coefficients anew each step, which have no symplectic form to keep.
DRAWN_STEPS = 1_000
EPS = 2.0**-52
#: Kepler, eccentricity 0.1 from the pericentre; the Lotka-Volterra cycle of the field's defaults. Both turn
#: once in about 2 pi units of time.
ECCENTRICITY = 0.1


@dataclass(frozen=True)
class Setting:
    """What is integrated, by kind of equation: field, start, step size, and the integrals looked at."""

    name: str
    field: Any
    y0: Any
    h: float
    integrals: tuple[str, ...]


def setting(equation: str) -> Setting:
    if equation == "first":
        return Setting("Lotka-Volterra", fields.LotkaVolterra(), np.array([1.2, 0.7]), 0.1, ("invariant",))
    q0 = np.array([1.0 - ECCENTRICITY, 0.0])
    v0 = np.array([0.0, math.sqrt((1.0 + ECCENTRICITY) / (1.0 - ECCENTRICITY))])
    return Setting(
        f"Kepler, e = {ECCENTRICITY:g}",
        fields.Kepler(equation=equation),
        (q0, v0),
        0.1,
        ("energy", "angular momentum"),
    )


@dataclass(frozen=True)
class Series:
    """Relative change of one integral since the start, sampled over the run. ``left``: the step at which the
    run left the format's range, or None.
    """

    setting: str
    integral: str
    h: float
    t: tuple[float, ...]
    change: tuple[float, ...]
    left: int | None = None

    @property
    def amplitude(self) -> float:
        """Largest change within the first tenth: what the method's own oscillation amounts to."""
        return float(np.abs(self.change[: max(2, len(self.change) // 10)]).max())

    def trend(self) -> tuple[float, float]:
        """``(slope, standard error)`` per unit of time, a straight line through the means of
        BLOCKS blocks.
        """
        t, x = (np.array_split(np.asarray(v[1:]), BLOCKS) for v in (self.t, self.change))
        t, x = np.array([b.mean() for b in t]), np.array([b.mean() for b in x])
        t = t - t.mean()
        slope = float(t @ x / (t @ t))
        residual = x - x.mean() - slope * t
        return slope, float(math.sqrt(residual @ residual / (len(t) - 2) / (t @ t)))


@lru_cache(maxsize=256)
def series(method: Method, equation: str, steps: int = STEPS) -> dict[str, Series]:
    """Each integral of the setting along a run of ``steps`` steps, fixed point, compiled loop."""
    s = setting(equation)
    every = min(EVERY, max(1, steps // (2 * BLOCKS)))  # two samples or more of each block of a short run
    try:
        run = integrate(s.field, s.y0, scheme=method, h=s.h, steps=steps, save_every=every, loop="compiled")
    except StateOverflowError as error:
        return {name: Series(s.name, name, s.h, (), (), error.layer) for name in s.integrals}
    out = {}
    for name in s.integrals:
        values = np.asarray(
            s.field.integrals()[name](*((run.ys,) if run.second is None else (run.ys, run.second)))
        )
        with np.errstate(invalid="ignore"):
            out[name] = Series(
                s.name,
                name,
                s.h,
                tuple(run.ts.tolist()),
                tuple(((values - values[0]) / abs(values[0])).tolist()),
            )
    return out


def allowance(method: Method, equation: str, steps: int) -> float:
    """Relative change that rounding may have caused by the end.

    Each micro-step rounds its increment ``gamma Phi`` a few times (at most 8 eps of it, |gamma Phi| <= 2
    |gamma| here) and the state to the grid (less). Such errors add up like a random walk: sqrt(steps) times
    16 eps sum |gamma|. Two-step methods read velocities from differences, which multiplies them by 1/h.
    """
    h = setting(equation).h
    moved = sum(abs(m.gamma(h)) for m in method.micros(1, equation))
    return 16 * EPS * max(moved, h) * math.sqrt(steps) * (1 / h if isinstance(method, TwoStep) else 1)


def judged(method: Method, equation: str, found: Series, steps: int, claimed: bool) -> Result:
    """Bounded: the drift over the run is explained by the fit's own uncertainty and by rounding. A failure
    only where the method claims it.
    """
    name = f"{found.integral} over {steps:,} steps, {found.setting}, h = {found.h:g}"
    claim, unit = f"{name}: bounded" if claimed else f"{name}: measured", "relative drift over the run"
    nothing = 0.0 if claimed else math.inf
    if found.left is not None:
        return Result(
            claim,
            not claimed,
            math.inf,
            nothing,
            unit,
            f"not bounded: left the format's range at step {found.left:,}",
        )
    if not np.isfinite(found.change).all():
        return Result(
            claim,
            not claimed,
            math.inf,
            nothing,
            unit,
            "not bounded: the trajectory left the integral's domain",
        )
    slope, error = found.trend()
    length = found.t[-1] - found.t[0]
    drift, bound = abs(slope) * length, SIGMAS * error * length + allowance(method, equation, steps)
    bounded = drift <= bound
    why = (
        f"{'bounded' if bounded else 'secular'}: slope {slope:.1e} +- {error:.0e} a unit of time beside an"
        f" oscillation of {found.amplitude:.1e}"
    )
    return Result(claim, bounded or not claimed, drift, bound if claimed else math.inf, unit, why)


def measure(method: Method, equation: str, steps: int = STEPS) -> list[Result]:
    """Energy is claimed to be bounded by symplectic methods; the angular momentum of a central force too,
    which every kick and drift of theirs keeps.
    """
    symplectic = method.claims(equation).symplectic
    if method.period is None:
        steps = min(steps, DRAWN_STEPS)
    return [
        judged(method, equation, found, steps, symplectic)
        for found in series(method, equation, steps).values()
    ]


class _Damped(SplittingMethod):
    """Loses a part in 1e8 of the momentum a step: less than any order test can see."""

    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        program = list(super().micros(n, equation))
        m = program[1]
        program[1] = Micro(m.slot, 1.0 - 2.0**-24, m.beta, m.gamma_coef, m.gamma_power, m.field, m.tau)
        return tuple(program)


MUTANTS = {"a momentum damped by 2**-24 a step": (_Damped(compositions.get("verlet")), "separable")}
