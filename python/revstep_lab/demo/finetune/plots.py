"""The two figures: what the dial costs, and fine-tuning curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...drawing import INK, PALETTE, SOFT, figure, label_ends, save
from .record import NAMES

#: Schemes on the dial, by c.
POINTS = {"Blend, c = 1/8": 1 / 8, "Blend, c = 1/4": 1 / 4, "Blend, c = 1/2": 1 / 2, "Midpoint, h = 1": 1.0}
#: Up to this change, either way, the axis is linear; beyond it logarithmic.
LINEAR = 1e-3


def draw_dial(path: Path, families: dict[str, Any], subtitle: str) -> None:
    """Change of the loss against c, for each family and start."""
    fig, (ax,) = figure(1, 8.6, 4.8, 2.3, "A trained network run as Blend(c), without retraining", subtitle)
    ends = []
    for (name, family), colour in zip(families.items(), PALETTE):
        for start, style in (("repeat", "-"), ("euler", (0, (5, 2)))):
            points = sorted((POINTS[r["scheme"]], r["change"]) for r in family["dial"] if r["scheme"] in POINTS and r["start"] == start)
            x, y = zip(*points)
            ax.plot(x, y, color=colour, linestyle=style, linewidth=1.8, marker="o", markersize=4, zorder=3)
            ends.append((x[-1], y[-1], f"{NAMES[name]}, start {start}", colour))
    ax.set_xscale("log", base=2)
    ax.set_yscale("symlog", linthresh=LINEAR)
    ax.set_xticks(list(POINTS.values()), ["c = 1/8\n3 bits", "1/4\n2 bits", "1/2\n1 bit", "1: Midpoint\n0 bits"])
    ax.minorticks_off()
    for bound in (0.005, 0.015):
        ax.axhline(bound, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.text(0.01, bound, f"{bound:.1%}", fontsize=8, color=SOFT, va="bottom", transform=ax.get_yaxis_transform())
    low, high = min(r["change"] for f in families.values() for r in f["dial"]), max(r["change"] for f in families.values() for r in f["dial"])
    ticks = [t for t in (-0.1, -0.01, -LINEAR, 0.0, LINEAR, 0.01, 0.1, 1.0) if min(low, -LINEAR) <= t <= max(high, 0.02)]
    ax.set_yticks(ticks, [f"{100 * t:+.3g} %" if t else "0" for t in ticks])
    ax.set_ylim(1.2 * ticks[0], 1.6 * max(high, 0.02))
    ax.set_ylabel("change of the loss", color=INK, fontsize=9)
    ax.set(xlim=ax.get_xlim())
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
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # fixed: labels are placed by them
        label_ends(ax, ends, size=8.5)
    save(fig, path)


def _smooth(values: list[float], window: int) -> np.ndarray:
    """Trailing mean."""
    return np.array([np.mean(values[max(0, i + 1 - window) : i + 1]) for i in range(len(values))])
