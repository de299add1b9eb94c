"""Energy over a million steps: symplectic methods keep its error where it was, others let it grow."""

from __future__ import annotations

from typing import Any

import numpy as np

from revstep.ode import fields, integrate
from revstep.ode.methods import Method

from ...drawing import INK, PALETTE, SOFT, figure, label_ends
from ..ode.drift import EVERY, STEPS, Series, series
from .page import Picture, picture

ID = "energy-drift"
KEPLER = ("hamiltonian", "verlet", "yoshida4", "kahan_li6", "kahan_li8")
#: On the oscillator, as a Hamiltonian system or as y' = A y.
OSCILLATOR = {
    "verlet": "separable",
    "yoshida4": "separable",
    "midpoint": "first",
    "reversible_heun2": "first",
    "reversible_bosh3": "first",
    "reversible_rk4": "first",
}
H, WINDOWS = 0.1, 60


def measure(methods: dict[str, Method], steps: int = STEPS) -> list[dict[str, Any]]:
    """A panel each: for each method its largest relative energy error so far, the fitted slope with its
    standard error, and whether it is symplectic.
    """
    kepler = {n: (series(methods[n], "separable", steps)["energy"], True) for n in KEPLER if n in methods}
    oscillator = {
        n: (_oscillator(methods[n], e, steps), methods[n].claims(e).symplectic)
        for n, e in OSCILLATOR.items()
        if n in methods
    }
    named = {"Kepler, eccentricity 0.1, symplectic methods": kepler, "harmonic oscillator": oscillator}
    return [
        {
            "problem": problem,
            "steps": steps,
            "lines": {n: _line(s, steps, symplectic) for n, (s, symplectic) in found.items()},
        }
        for problem, found in named.items()
        if found
    ]


def _oscillator(method: Any, equation: str, steps: int) -> Series:
    one, none = np.array([1.0]), np.array([0.0])
    field, y0 = (
        (fields.Linear([[0.0, 1.0], [-1.0, 0.0]]), np.array([1.0, 0.0]))
        if equation == "first"
        else (fields.Harmonic(equation=equation), (one, none))
    )
    run = integrate(field, y0, scheme=method, h=H, steps=steps, save_every=min(EVERY, steps), loop="compiled")
    y = run.ys if run.second is None else np.concatenate([run.ys, run.second], axis=-1)
    energy = (y * y).sum(-1)
    return Series(
        "harmonic oscillator", "energy", H, tuple(run.ts.tolist()), tuple((energy / energy[0] - 1.0).tolist())
    )


def _line(s: Series, steps: int, symplectic: bool) -> dict[str, Any]:
    """At WINDOWS places, equidistant on a logarithmic axis."""
    largest = np.maximum.accumulate(np.abs(np.asarray(s.change)))
    n = np.round(np.asarray(s.t) / s.h)
    places = np.unique(np.searchsorted(n, np.geomspace(n[1], steps, WINDOWS)).clip(1, len(n) - 1))
    slope, error = s.trend()
    return {
        "step": n[places].tolist(),
        "error": largest[places].tolist(),
        "slope": slope,
        "slope_error": error,
        "symplectic": symplectic,
    }


def draw(panels: list[dict[str, Any]]) -> Picture:
    """Log-log: flat is bounded, a rising straight line of slope 1 is secular."""
    fig, axes = figure(
        len(panels),
        10.8,
        4.8,
        1.6,
        f"Energy over {panels[0]['steps']:,} steps: splittings stay where they were, Runge-Kutta steps drift",
        f"largest relative energy error so far, h = {H:g}, fixed-point states, compiled loop",
        top=1.1,
    )
    for ax, panel in zip(axes, panels):
        ax.set_xscale("log")
        ax.set_yscale("log")
        ends = []
        for k, (name, line) in enumerate(panel["lines"].items()):
            colour = INK if name == "verlet" else PALETTE[k % len(PALETTE)]
            errors = np.maximum(line["error"], 1e-17)
            ax.plot(
                line["step"],
                errors,
                color=colour,
                linewidth=1.7,
                linestyle="-" if line["symplectic"] else (0, (5, 1.5)),
                zorder=3,
            )
            ends.append((line["step"][-1], float(errors[-1]), name, colour))
        ax.set_xlim(panel["lines"][next(iter(panel["lines"]))]["step"][0], panel["steps"])
        ax.autoscale_view()
        ax.set_title(panel["problem"], fontsize=10, color=INK, loc="left")
        ax.set_xlabel("steps", color=INK, fontsize=9)
        ax.set_ylabel("relative energy error", color=INK, fontsize=9)
        label_ends(ax, ends, size=8.5)
    axes[-1].text(
        0.98, 0.03, "dashed: not symplectic", fontsize=8, color=SOFT, ha="right", transform=axes[-1].transAxes
    )
    words = "; ".join(
        f"{p['problem']}: "
        + ", ".join(
            f"{n} {line['error'][0]:.0e} to {line['error'][-1]:.0e}" for n, line in p["lines"].items()
        )
        for p in panels
    )
    slopes = ", ".join(
        f"{n} {line['slope']:.1e} +- {line['slope_error']:.0e}" for n, line in panels[-1]["lines"].items()
    )
    return picture(
        fig,
        ID,
        f"Largest energy error so far against steps, early and at the end. {words}.",
        "Slopes of the oscillator's relative energy a unit of time, fitted through block means, with"
        f" standard errors: {slopes}.",
        {"panels": panels},
    )
