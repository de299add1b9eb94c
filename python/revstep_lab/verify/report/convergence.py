"""Error against step size, with the fitted slope beside each method's name."""

from __future__ import annotations

import math
from typing import Any

from revstep.ode.methods import Method

from ...drawing import INK, PALETTE, figure, label_ends
from ..ode.order import asymptotic, convergence, power
from ..ode.problems import PROBLEMS
from .page import Picture, picture

ID = "convergence"
#: Panels: kind of equation and class of problem. Splittings are drawn where they belong, on the separable
#: one.
PANELS = (("first", "Hamiltonian"), ("separable", "Hamiltonian"))
#: One colour an order.
COLOURS = {1: PALETTE[5], 2: PALETTE[0], 3: PALETTE[3], 4: PALETTE[2], 5: PALETTE[4], 6: PALETTE[1], 8: INK}


def chosen(equation: str, methods: dict[str, Method]) -> dict[str, Method]:
    """Methods drawn on a panel: on separable equations all, on first-order ones those made for them; none of
    expectations.
    """
    found = {
        n: m for n, m in methods.items() if equation in m.equations and not m.claims(equation).in_expectation
    }
    return {
        n: m for n, m in found.items() if equation != "first" or "second" not in m.equations or n == "verlet"
    }


def measure(methods: dict[str, Method]) -> list[dict[str, Any]]:
    """A panel each: the problem, and for each method h, errors, slope and claimed order."""
    panels = []
    for equation, kind in PANELS:
        lines, problem = {}, PROBLEMS[equation][kind]
        for name, method in chosen(equation, methods).items():
            claims = method.claims(equation)
            run = convergence(asymptotic(method)[0], equation, claims.order, power(claims))[kind]
            lines[name] = {
                "h": list(run.h),
                "errors": list(run.errors),
                "slope": run.slope,
                "order": claims.order,
            }
        if lines:
            panels.append({"equation": equation, "problem": problem.name, "end": problem.end, "lines": lines})
    return panels


def draw(panels: list[dict[str, Any]]) -> Picture:
    """Log-log; a steeper line is a higher order."""
    fig, axes = figure(
        len(panels),
        10.8,
        6.0,
        1.75,
        "Convergence: each method's error falls with the power of h that it claims",
        "error at the end over the step size, both logarithmic; beside each name the slope as h tends to 0,"
        " fitted over three halvings",
        top=1.1,
    )
    for ax, panel in zip(axes, panels):
        ax.set_xscale("log")
        ax.set_yscale("log")
        lines = {
            name: line
            for name, line in panel["lines"].items()
            if all(math.isfinite(e) and e > 0 for e in line["errors"])
        }
        for line in lines.values():
            ax.plot(
                line["h"],
                line["errors"],
                color=COLOURS.get(line["order"], INK),
                linewidth=1.6,
                marker="o",
                markersize=3.2,
                zorder=3,
            )
        ax.set_title(f"{panel['problem']}, t = {panel['end']:g}", fontsize=10, color=INK, loc="left")
        ax.set_xlabel("h", color=INK, fontsize=9)
        ax.set_ylabel("error", color=INK, fontsize=9)
        ends = [
            (line["h"][0], line["errors"][0], f"{name}  {line['slope']:.2f}", COLOURS.get(line["order"], INK))
            for name, line in lines.items()
        ]
        ax.xaxis.set_minor_formatter(lambda v, _: "")
        ax.autoscale_view()  # labels are placed in the final limits
        label_ends(ax, ends, size=8)
    worst = max(
        (abs(line["slope"] - line["order"]) for p in panels for line in p["lines"].values()), default=0.0
    )
    listed = "; ".join(
        f"{name} {line['slope']:.2f} (claims {line['order']})"
        for p in panels
        for name, line in p["lines"].items()
    )
    return picture(
        fig,
        ID,
        f"Error against step size on two problems. Fitted slopes: {listed}.",
        "Fixed-point states; errors against a reference good to 1e-13. A colour an order. Reversible"
        f" Runge-Kutta methods at lam = 1/2. The slope furthest from its claim is {worst:.2f} off; the table"
        " has all four problem classes.",
        {"panels": panels},
    )
