"""How all figures look. Drawn without pyplot, so that no display is needed and no global state is touched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from revstep._imports import require

INK, SOFT, GRID = "#22262b", "#6b7280", "#e3e6ea"
#: Told apart by people who do not see red and green alike (Okabe and Ito).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#B58900", "#56B4E9")

#: Inches around the axes: room for the axis labels on the left, for direct labels on the right of each.
LEFT, BOTTOM, TOP = 0.95, 0.62, 0.85


def figure(
    columns: int, width: float, height: float, labels: float, title: str, subtitle: str, top: float = TOP
) -> tuple[Any, list[Any]]:
    """A figure of ``width`` x ``height`` inches with a title, a line below it, and ``columns`` clean axes,
    each with ``labels`` inches to its right and ``top`` inches above."""
    require("matplotlib", "drawing the figures")
    from matplotlib.figure import Figure

    fig = Figure(figsize=(width, height), dpi=160, facecolor="white")
    axes = list(np.atleast_1d(fig.subplots(1, columns)))
    inner = (width - columns * (LEFT + labels)) / columns
    fig.subplots_adjust(
        left=LEFT / width,
        right=1 - labels / width,
        top=1 - top / height,
        bottom=BOTTOM / height,
        wspace=(LEFT + labels) / inner,
    )
    fig.text(0.2 / width, 1 - 0.2 / height, title, fontsize=12.5, fontweight="bold", color=INK, va="top")
    fig.text(0.2 / width, 1 - 0.5 / height, subtitle, fontsize=9, color=SOFT, va="top")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(SOFT)
        ax.tick_params(colors=SOFT, labelsize=9, length=3)
        ax.grid(axis="y", color=GRID, linewidth=0.8)
        ax.set_axisbelow(True)
    return fig, axes


def spread(places: Sequence[float], heights: Sequence[float]) -> list[float]:
    """The places moved as little as possible so that boxes of these heights around them do not overlap; the
    order is kept.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    groups: list[tuple[float, list[int]]] = []  # (centre, members from below)
    for i in order:
        groups.append((places[i], [i]))
        while (
            len(groups) > 1
            and groups[-1][0] - groups[-2][0] < sum(heights[j] for _, g in groups[-2:] for j in g) / 2
        ):
            (a, low), (b, high) = groups[-2:]
            groups[-2:] = [((a * len(low) + b * len(high)) / (len(low) + len(high)), low + high)]
    out = [0.0] * len(places)
    for centre, members in groups:
        edge = centre - sum(heights[j] for j in members) / 2
        for j in members:
            out[j] = edge + heights[j] / 2
            edge += heights[j]
    return out


def label_ends(ax: Any, ends: Sequence[tuple[float, float, str, str]], size: float = 9) -> None:
    """Labels (x, y, text, colour) at the right of the axes, spread so that none covers another, each tied to
    its line's end.
    """
    line = size * ax.figure.dpi / 72 * 1.25 / ax.get_window_extent().height
    at = [ax.transAxes.inverted().transform(ax.transData.transform((x, y))) for x, y, _, _ in ends]
    heights = [line * (text.count("\n") + 1.15) for _, _, text, _ in ends]
    for (_, _, text, colour), (u, v), w in zip(ends, at, spread([v for _, v in at], heights)):
        ax.annotate(
            text,
            xy=(u, v),
            xytext=(1.04, w),
            xycoords="axes fraction",
            textcoords="axes fraction",
            fontsize=size,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.7,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 2,
            },
        )


def save(fig: Any, path: Path) -> None:
    """The figure as a PNG file, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    fig.savefig(part, format="png")
    part.replace(path)
