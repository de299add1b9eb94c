"""Reconstruction error against depth: what float states lose in three precisions, and fixed point in none."""

from __future__ import annotations

import math
from typing import Any

import torch

from revstep.schemes import available
from revstep.state import FixedPoint
from revstep.verify.blockcheck._depth import Depth, drift_table
from revstep.verify.blockcheck._load import Subject

from ...drawing import GRID, INK, PALETTE, SOFT, figure, label_ends
from ..suite import example_blocks
from .page import Picture, picture

ID = "reconstruction-by-depth"
#: A scheme whose inverse multiplies no error by itself, and one that doubles it a layer.
SCHEMES = ("midpoint", "blend")
WIDTH, LENGTH, SCALE = 64, 16, 4.0
NAMES = {
    "float states, float32": "float32",
    "float states, bf16 autocast": "bf16",
    "float states, fp16 autocast": "fp16",
}


def measure(layers: int = 24) -> dict[str, Any]:
    """For each scheme ``{"layers": [...], "errors": {name: [...]}, "fixed": [...]}``: the worst relative
    error of a rebuilt state.
    """
    x = torch.randn(2, LENGTH, WIDTH, generator=torch.Generator().manual_seed(1))
    blocks = example_blocks(layers, WIDTH, dropout=0.1, scale=SCALE)
    subject = Subject("example block", lambda: example_blocks(1, WIDTH)[0], x)
    out = {}
    for name in SCHEMES:
        depths, columns, notes = drift_table(Depth(subject, available()[name](), blocks), FixedPoint())
        fixed = columns.pop(next(c for c in columns if c.startswith("fixed")))
        out[name] = {
            "layers": depths,
            "errors": {NAMES[c]: errors for c, errors in columns.items()},
            "fixed": fixed,
            "notes": notes,
        }
    return out


def draw(data: dict[str, Any]) -> Picture:
    """A panel a scheme, on one scale; what is exactly 0 lies on a line of its own."""
    deepest = max(d["layers"][-1] for d in data.values())
    fig, axes = figure(
        len(data),
        10.8,
        4.6,
        0.95,
        "Rebuilt states: what float states lose with depth, and fixed point does not",
        f"worst relative error of a rebuilt state; transformer blocks, width {WIDTH}, {SCALE:g} times their"
        " initial scale, dropout replayed",
        top=1.1,
    )
    found = [
        e for d in data.values() for errors in d["errors"].values() for e in errors if e and math.isfinite(e)
    ]
    low, high = (
        math.floor(math.log10(min(found, default=1e-8))),
        math.ceil(math.log10(max(found, default=1.0))),
    )
    zero = 10.0 ** (low - 2)
    for ax, (name, d) in zip(axes, data.items()):
        _panel(ax, name, d, zero, 10.0**high)
    every = all(e == 0.0 for d in data.values() for e in d["fixed"])
    words = "; ".join(
        f"{name} at {deepest} layers: " + ", ".join(f"{k} {_say(v[-1])}" for k, v in d["errors"].items())
        for name, d in data.items()
    )
    alt = (
        f"Two panels of error against depth. {words}. Fixed point is"
        f" {'exactly 0 at every depth' if every else 'NOT always exact'}."
    )
    caption = (
        "The rebuilt state's error over its own norm, by the number of layers, on this machine. Lines: states"
        " in float32, blocks in float32, or under bfloat16 or float16 autocast. The line at the bottom:"
        " fixed-point states in the same three precisions."
    )
    return picture(fig, ID, alt, caption, data)


def _panel(ax: Any, name: str, d: dict[str, Any], zero: float, top: float) -> None:
    depths = d["layers"]
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlim(depths[0], depths[-1])
    ax.set_ylim(zero / 4, top * 2)
    ax.set_xticks(depths, [str(n) for n in depths])
    ax.minorticks_off()
    ticks = [10.0**k for k in range(round(math.log10(zero)) + 2, round(math.log10(top)) + 1, 2)]
    ax.set_yticks([zero, *ticks], ["exactly 0", *(f"$10^{{{round(math.log10(t))}}}$" for t in ticks)])
    ax.axhline(zero, color=GRID, linewidth=0.8)
    ends = []
    for (label, errors), colour in zip(d["errors"].items(), PALETTE):
        points = [(n, e) for n, e in zip(depths, errors) if e is not None]
        if points:
            shown = [min(e, top) if e > 0 else zero for _, e in points]
            ax.plot(
                [n for n, _ in points],
                shown,
                color=colour,
                linewidth=1.8,
                marker="o",
                markersize=4,
                zorder=3,
                clip_on=False,
            )
            ends.append((points[-1][0], shown[-1], label, colour))
    fixed = [(n, e) for n, e in zip(depths, d["fixed"]) if e is not None]
    ax.plot(
        [n for n, _ in fixed],
        [e or zero for _, e in fixed],
        color=INK,
        linewidth=2.4,
        marker="s",
        markersize=4,
        zorder=4,
        clip_on=False,
    )
    if fixed:
        ends.append((fixed[-1][0], fixed[-1][1] or zero, "fixed\npoint", INK))
    if zero < 1.0 < top:
        ax.axhline(1.0, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.text(
            0.015,
            1.0,
            "as large as the state itself",
            fontsize=8,
            color=SOFT,
            va="bottom",
            transform=ax.get_yaxis_transform(),
        )
    ax.set_title(name, fontsize=10, color=INK, loc="left")
    ax.set_xlabel("layers", color=INK, fontsize=9)
    ax.set_ylabel("relative error", color=INK, fontsize=9)
    label_ends(ax, ends)


def _say(error: float | None) -> str:
    return "not measured" if error is None else f"{error:.1g}" if math.isfinite(error) else "not finite"
