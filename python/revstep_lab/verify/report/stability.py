"""Where the linear test equation stays bounded: measured by running the methods, beside the theory of their
characteristic roots.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revstep.ode import FirstOrder, SecondOrder, integrate
from revstep.ode.methods import Method, ReversibleRK, SplittingMethod, resolve
from revstep.schemes import Blend
from revstep.state import Float

from ...drawing import GRID, INK, PALETTE, SOFT, figure
from .page import Picture, picture

ID = "stability-region"
C, LAM = 0.5, 0.75
#: Grid of z = h lambda, and the steps after which growth is judged over as many again.
REAL, IMAGINARY, POINTS, STEPS = (-1.2, 0.6), (-2.6, 2.6), 73, 60
#: Largest h omega looked for, between two of them, and how far beyond the theory runs are made (further on
#: they leave float64).
LONGEST, FINE, BEYOND, FEW = 6.0, 0.01, 0.05, 40
#: Growth a step that is still called bounded: 1% over STEPS steps is a factor of 1.8, which transients reach.
SLACK = 1e-2


def blend_radius(z: np.ndarray) -> np.ndarray:
    """Largest root of ``w**2 - ((1 - c) + (1 + c) z) w - c``."""
    middle = (1 - C) + (1 + C) * z
    root = np.sqrt(middle * middle + 4 * C)
    return np.maximum(np.abs(middle + root), np.abs(middle - root)) / 2


def rk4_radius(z: np.ndarray) -> np.ndarray:
    """Spectral radius of the coupled step of McCallum and Foster on RK4, whose increment is ``P(z) = z +
    z**2/2 + z**3/6 + z**4/24``.
    """

    def p(x: np.ndarray) -> np.ndarray:
        return x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4)))

    b, d = (1 - LAM) + p(z), -p(-z)
    matrix = np.stack([np.stack([np.full_like(z, LAM), b], -1), np.stack([d * LAM, 1 + d * b], -1)], -2)
    return np.abs(np.linalg.eigvals(matrix)).max(-1)


REGIONS = {
    f"blend, c = {C:g}": (lambda: resolve(Blend(c=C), 1.0), blend_radius),
    f"reversible_rk4, lam = {LAM:g}": (lambda: ReversibleRK("rk4", LAM), rk4_radius),
}


def _points() -> np.ndarray:
    x, y = np.linspace(*REAL, POINTS), np.linspace(*IMAGINARY, POINTS)
    return x[None, :] + 1j * y[:, None]


def _growth(slots: list[Tensor]) -> np.ndarray:
    """Factor a step between STEPS and 2 STEPS, from the larger of the two slots."""
    sizes = [torch.linalg.vector_norm(torch.cat(pair, -1), dim=-1).numpy() for pair in slots]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(np.isfinite(sizes[1]), (sizes[1] / sizes[0]) ** (1 / STEPS), np.inf)


def measure(methods: dict[str, Method]) -> dict[str, Any]:
    """Shares of the grid where measurement and theory agree, the measured regions, and the stability
    intervals of the splittings.
    """
    z = _points()
    regions = {}
    for name, (make, radius) in REGIONS.items():
        growth = _growth([_run_first(make(), z, STEPS * k) for k in (1, 2)]).reshape(z.shape)
        theory = radius(z)
        measured, expected = growth <= 1 + SLACK, theory <= 1 + SLACK
        near = np.abs(theory - 1 - SLACK) < SLACK  # the boundary itself
        regions[name] = {
            "measured": measured.astype(int).tolist(),
            "agree": float((measured == expected)[~near].mean()),
            "compared": int((~near).sum()),
        }
    intervals = {}
    for name, method in methods.items():
        if isinstance(method, SplittingMethod):
            intervals[name] = {
                "measured": measured_interval(method),
                "theory": theoretical_interval(method),
                "stages": method.data.stages,
            }
    return {"regions": regions, "intervals": intervals}


def _run_first(method: Any, z: np.ndarray, steps: int) -> tuple[Tensor, Tensor]:
    """y' = lambda y for a batch of complex lambda, h = 1, as pairs of real numbers."""
    a, b = (torch.from_numpy(np.ascontiguousarray(v).reshape(-1)) for v in (z.real, z.imag))

    def field(t: Tensor, y: Tensor) -> Tensor:
        u, v = y[:, 0], y[:, 1]
        return torch.stack([a * u - b * v, b * u + a * v], -1)

    y0 = torch.tensor([[1.0, 0.3]], dtype=torch.float64).repeat(a.numel(), 1)
    method = copy.copy(resolve(method, 1.0))
    # Growth is what is looked for here, of the copies too.
    object.__setattr__(method, "apart_limit", math.inf)
    return integrate(
        FirstOrder(field),
        y0,
        scheme=method,
        h=1.0,
        steps=steps,
        state=Float(torch.float64, max_error=math.inf),
    ).final


def measured_interval(method: Any) -> float:
    """The largest h omega up to which every run on q'' = -omega**2 q stays bounded."""
    end = min(theoretical_interval(method) + BEYOND, LONGEST)
    h = torch.arange(1, round(end / FINE) + 1, dtype=torch.float64)[:, None] * FINE
    y0 = (torch.ones_like(h), 0.3 * h)
    run = integrate(
        SecondOrder(lambda t, q: -h * h * q),
        y0,
        scheme=method,
        h=1.0,
        steps=2 * FEW,
        save_every=1,
        state=Float(torch.float64, max_error=math.inf),
    )
    size = torch.hypot(run.ys, run.second / h)[..., 0].numpy()
    growth = size[FEW:].max(0) / size[:FEW].max(0)
    unstable = np.flatnonzero(~(growth < 1.25))  # a bounded orbit has shown its size within FEW steps
    return float(h[unstable[0] - 1]) if len(unstable) and unstable[0] else end if not len(unstable) else 0.0


def theoretical_interval(method: Any) -> float:
    """The largest h omega up to which the step's matrix on the oscillator has a trace of at most 2."""
    for k in range(1, round(LONGEST / FINE) + 1):
        h, m = k * FINE, np.eye(2)
        for a, b in zip(method.data.full_a(), (*method.data.full_b(), 0.0), strict=True):
            m = np.array([[1.0, 0.0], [-b * h, 1.0]]) @ np.array([[1.0, a * h], [0.0, 1.0]]) @ m
        if not abs(np.trace(m)) <= 2.0 + 1e-9:
            return (k - 1) * FINE
    return LONGEST


def draw(data: dict[str, Any]) -> Picture:
    """Two regions of the complex plane and the intervals of the splittings."""
    fig, axes = figure(
        3,
        11.4,
        4.9,
        0.35,
        "Linear stability: measured regions and intervals lie on the theoretical ones",
        "left, middle: y' = lambda y, shaded where runs stayed bounded, line where the theory's largest root"
        " is 1; right: q'' = -omega^2 q",
        top=1.1,
    )
    x, y = np.linspace(*REAL, POINTS), np.linspace(*IMAGINARY, POINTS)
    for ax, (name, region), (_, radius) in zip(axes, data["regions"].items(), REGIONS.values()):
        ax.contourf(x, y, np.array(region["measured"]), levels=[0.5, 1.5], colors=[PALETTE[5]], alpha=0.55)
        ax.contour(x, y, radius(_points()), levels=[1.0 + SLACK], colors=[INK], linewidths=1.3)
        for line in (ax.axhline, ax.axvline):
            line(0.0, color=SOFT, linewidth=0.7, zorder=1)
        ax.set_title(name, fontsize=10, color=INK, loc="left")
        ax.set_xlabel("Re h lambda", color=INK, fontsize=9)
        ax.set_ylabel("Im h lambda", color=INK, fontsize=9)
    _intervals(axes[2], data["intervals"])
    agree = min((r["agree"] for r in data["regions"].values()), default=1.0)
    apart = max((abs(i["measured"] - i["theory"]) for i in data["intervals"].values()), default=0.0)
    listed = ", ".join(
        f"{n} {i['measured']:.2f} (theory {i['theory']:.2f})" for n, i in data["intervals"].items()
    )
    return picture(
        fig,
        ID,
        f"Stability regions of {' and '.join(data['regions'])}, measured and in theory, agreeing on"
        f" {agree:.1%} of the grid. Largest h omega: {listed}.",
        f"Judged by growth between steps {STEPS} and {2 * STEPS} in float64 states. Away from the boundary"
        f" measurement and theory agree on {agree:.1%} of {POINTS**2:,} points; the intervals differ by at"
        f" most {apart:.2f}, on a grid of {FINE:g}. Longer steps cost more evaluations: compare h omega over"
        " the number of stages, in brackets.",
        data,
    )


def _intervals(ax: Any, intervals: dict[str, Any]) -> None:
    names = sorted(intervals, key=lambda n: intervals[n]["theory"])
    rows = range(len(names))
    ax.barh(rows, [intervals[n]["theory"] for n in names], height=0.62, color=PALETTE[5], alpha=0.55)
    ax.plot(
        [intervals[n]["measured"] for n in names],
        rows,
        "|",
        color=INK,
        markersize=11,
        markeredgewidth=2,
        zorder=3,
    )
    for k, n in enumerate(names):
        ax.text(0.06, k, f"{n} ({intervals[n]['stages']})", fontsize=8, color=INK, va="center")
    ax.set_yticks([])
    ax.set_ylim(-0.7, max(len(names), 8) - 0.3)
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color=GRID, linewidth=0.8)
    ax.set_title("splittings: bar theory, mark measured", fontsize=10, color=INK, loc="left")
    ax.set_xlabel("largest h omega", color=INK, fontsize=9)
