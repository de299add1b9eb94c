"""The two figures: what the dial costs, and fine-tuning curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...drawing import INK, PALETTE, SOFT, figure, label_ends, save
from .record import NAMES

#: Schemes on the dial, by c.
POINTS = {"Blend, c = 1/8": 1 / 8, "Blend, c = 1/4": 1 / 4, "Blend, c = 1/2": 1 / 2, "Midpoint, h = 1": 1.0}
#: Changes below it are drawn on it: the axis is logarithmic.
FLOOR = 1e-5


def draw_dial(path: Path, families: dict[str, Any], subtitle: str) -> None:
    """Change of the loss against c, for each family and start."""
    fig, (ax,) = figure(1, 8.6, 4.8, 2.3, "A trained network run as Blend(c), without retraining", subtitle)
    ends = []
    for (name, family), colour in zip(families.items(), PALETTE):
        for start, style in (("repeat", "-"), ("euler", (0, (5, 2)))):
            points = sorted((POINTS[r["scheme"]], r["change"]) for r in family["dial"] if r["scheme"] in POINTS and r["start"] == start)
            x, y = [p[0] for p in points], [max(p[1], FLOOR) for p in points]
            ax.plot(x, y, color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=4, zorder=3)
            ends.append((x[-1], y[-1], f"{NAMES[name]}, start {start}", colour))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(list(POINTS.values()), ["c = 1/8\n3 bits", "1/4\n2 bits", "1/2\n1 bit", "1: Midpoint\n0 bits"])
    ax.minorticks_off()
    for bound in (0.005, 0.015):
        ax.axhline(bound, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.text(0.01, bound, f"{bound:.1%}", fontsize=8, color=SOFT, va="bottom", transform=ax.get_yaxis_transform())
    ax.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.3g} %" if v > FLOOR else f"{100 * FLOOR:.3g} % or less")
    ax.set_ylabel("loss above the original's", color=INK, fontsize=9)
    label_ends(ax, ends)
    save(fig, path)


def draw_curves(path: Path, families: dict[str, Any], subtitle: str) -> None:
    """Training loss of full fine-tuning, one panel a family: plain and reversible on the same rows."""
    fig, axes = figure(len(families), 5.7 * len(families), 4.4, 1.9, "Fine-tuning on another text: the same weights, rows and order", subtitle)
    for ax, (name, family) in zip(axes, families.items()):
        ends, shown = [], [r for r in family["tuned"] if r["adapting"] == "full" and r["method"] != "checkpoint"]
        for r, colour in zip(shown, (INK, *PALETTE)):
            y = _smooth(r["training_loss"], max(1, len(r["training_loss"]) // 8))
            plain = r["method"] == "plain"
            ax.plot(np.arange(1, len(y) + 1), y, color=colour, linewidth=3.0 if plain else 1.5, alpha=0.35 if plain else 1.0, zorder=2 if plain else 3)
            ends.append((len(y), y[-1], f"{r['method']}\n{r['deployed']:.3f} deployed", colour))
        ax.set_title(NAMES[name], fontsize=9.5, color=INK, loc="left")
        ax.set_xlabel("step", color=INK, fontsize=9)
        ax.set_ylabel("training loss, nats a token", color=INK, fontsize=9)
        label_ends(ax, ends, size=8.5)
    save(fig, path)


def _smooth(values: list[float], window: int) -> np.ndarray:
    """Trailing mean."""
    return np.array([np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))])
