"""The three figures of the demo of stacks: losses, bytes kept for backward against depth, and the error of
each rebuilt state.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..drawing import GRID, INK, PALETTE, SOFT, figure, label_ends, save

STORED = {"plain": INK, "checkpoint": "#8a9099"}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each stack: the stored ones grey, the others in turn."""
    turn = itertools.cycle(PALETTE)
    return {name: STORED[name] if name in STORED else next(turn) for name in names}


def _smooth(values: Sequence[float], window: int) -> np.ndarray:
    """Trailing mean."""
    total = np.cumsum(np.insert(np.asarray(values, dtype=float), 0, 0.0))
    return np.array(
        [(total[i] - total[max(0, i - window)]) / (i - max(0, i - window)) for i in range(1, len(total))]
    )


def draw_curves(path: Path, curves: list[dict[str, Any]], tokens: int, unigram: float, subtitle: str) -> None:
    """Validation loss (thick) and training loss (thin, smoothed) against tokens and against each stack's own
    seconds.
    """
    shown = [c for c in curves if len(c["validation"]) > 1]
    palette = colours([c["stack"] for c in curves])
    fig, axes = figure(
        2, 11.4, 4.4, 1.5, "Loss of each stack: the same initial weights, the same batches", subtitle
    )
    last = [c["validation"][-1]["loss"] for c in shown]
    low, high = min(last, default=unigram), max([*last, unigram])
    for ax, kind in zip(axes, ("tokens", "seconds")):
        ends = []
        for c in shown:
            clock = np.cumsum([0.0, *c["seconds"]])
            places = np.arange(len(clock)) * tokens if kind == "tokens" else clock
            colour, width = palette[c["stack"]], 2.2 if c["stack"] == "plain" else 1.7
            x, y = [places[p["step"]] for p in c["validation"]], [p["loss"] for p in c["validation"]]
            smooth = _smooth(c["training_loss"], max(1, len(c["training_loss"]) // 12))
            ax.plot(places[1:], smooth, color=colour, linewidth=0.6, alpha=0.25)
            ax.plot(x, y, color=colour, linewidth=width, marker="o", markersize=3, zorder=3)
            ends.append(
                (x[-1], y[-1], f"{c['stack']}  {y[-1]:.3f}" if kind == "tokens" else c["stack"], colour)
            )
        ax.axhline(unigram, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.set_ylim(low - 0.1 * (high - low) - 0.02, high + 0.3 * (high - low) + 0.05)
        ax.set_xlim(left=0)
        ax.text(
            0.985,
            unigram,
            "byte frequencies alone",
            fontsize=8,
            color=SOFT,
            va="bottom",
            ha="right",
            transform=ax.get_yaxis_transform(),
        )
        ax.set_xlabel(
            "training tokens" if kind == "tokens" else "seconds in the stack's own steps",
            color=INK,
            fontsize=9,
        )
        ax.set_ylabel("loss, nats a byte", color=INK, fontsize=9)
        if kind == "tokens":
            ax.xaxis.set_major_formatter(lambda v, _: f"{v / 1000:,.0f}k" if v else "0")
        label_ends(ax, ends, size=8.5)
    save(fig, path)


def draw_memory(path: Path, measured: dict[str, Any], subtitle: str) -> None:
    """Bytes kept for backward against depth, both axes by doublings; lines that coincide share a label."""
    depths, found = measured["depths"], measured["bytes"]
    palette = colours(list(found))
    fig, (ax,) = figure(1, 8.6, 4.8, 2.3, memory_title(measured), subtitle)
    groups: list[list[str]] = []
    for name in found:
        near = next((g for g in groups if abs(math.log(found[g[0]][-1] / found[name][-1])) < 0.02), None)
        (near.append(name) if near else groups.append([name]))
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=10)
    for name, values in found.items():
        style = (0, (5, 2)) if name == "checkpoint" else "-"
        ax.plot(
            depths,
            values,
            color=palette[name],
            linewidth=2.4 if name == "plain" else 1.8,
            linestyle=style,
            marker="o",
            markersize=4,
            zorder=3,
        )
    top, low = max(v[-1] for v in found.values()), min(v[0] for v in found.values())
    ax.set_ylim(low / 1.7, top * 1.7)
    ax.set_xticks(depths, [str(d) for d in depths])
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(lambda v, _: _bytes(v))
    ax.set_xlabel("layers", color=INK, fontsize=9)
    ax.set_ylabel("kept by the trunk", color=INK, fontsize=9)
    ends = []
    for group in groups:
        value = found[group[0]][-1]
        less = f", {_range([top / found[name][-1] for name in group])}x less" if value < top else ""
        ends.append((depths[-1], value, f"{_names(group)}\n{_bytes(value)}{less}", palette[group[0]]))
    label_ends(ax, ends, size=8.5)
    save(fig, path)


def memory_title(measured: dict[str, Any]) -> str:
    """The figure's claim, from its numbers."""
    found, deepest = measured["bytes"], measured["depths"][-1]
    factors = [found["plain"][-1] / values[-1] for name, values in found.items() if name not in STORED]
    if not factors:
        return "Bytes kept for backward against depth"
    return f"At {deepest} layers a reversible trunk keeps {_range(factors)} times fewer bytes for backward"


def _range(factors: Sequence[float]) -> str:
    low, high = f"{min(factors):.0f}", f"{max(factors):.0f}"
    return low if low == high else f"{low} to {high}"


def _names(group: list[str]) -> str:
    return ",\n".join(", ".join(group[i : i + 2]) for i in range(0, len(group), 2))


def _bytes(value: float) -> str:
    for unit, scale in (("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            shown = value / scale
            return f"{shown:,.0f} {unit}" if shown >= 100 else f"{shown:.3g} {unit}"
    return f"{value:.0f} B"


def draw_reconstruction(
    path: Path, drifts: dict[str, tuple[list[float], list[float]]], subtitle: str
) -> None:
    """Relative error of each rebuilt state by depth: float states as lines, exact ones on the line that
    stands for 0.

    ``drifts``: for each stack (float, exact) errors by state, from the input up. The last two states are
    kept, not rebuilt, and left out; depth is the share of all states, so that stacks of two half-steps a
    layer lie over the others.
    """
    palette = colours(list(drifts))
    fig, (ax,) = figure(
        1, 8.6, 4.8, 1.5, "Relative error of the states rebuilt on the way down to the input", subtitle
    )
    positive = [
        e for floats, exact in drifts.values() for e in (*floats, *exact) if math.isfinite(e) and e > 0
    ]
    bottom, top = min(positive, default=1e-7), max(positive, default=1.0)
    zero, ceiling = bottom / 30, top * 4
    ends, equal = [], []
    for name, (floats, exact) in drifts.items():
        depth = np.linspace(0, 1, len(floats))[:-2]
        ax.plot(
            depth,
            [_place(e, zero, ceiling) for e in floats[:-2]],
            color=palette[name],
            linewidth=1.8,
            marker="o",
            markersize=3,
            zorder=3,
        )
        if floats:
            ends.append((0.0, _place(floats[0], zero, ceiling), f"{name}", palette[name]))
        if exact and not any(exact):
            equal.append(name)
        elif exact:
            ax.plot(
                np.linspace(0, 1, len(exact))[:-2],
                [_place(e, zero, ceiling) for e in exact[:-2]],
                color=palette[name],
                linewidth=1.8,
                linestyle=":",
            )
    _finish_reconstruction(ax, zero, ceiling, ends, equal, len(drifts))
    save(fig, path)


def _place(error: float, zero: float, ceiling: float) -> float:
    """Where an error is drawn: 0 on its own line, what is not finite at the top."""
    return zero if error == 0 else min(error, ceiling) if error == error else ceiling


def _finish_reconstruction(
    ax: Any, zero: float, ceiling: float, ends: list, equal: list[str], stacks: int
) -> None:
    ax.set_yscale("log")
    ax.set_ylim(zero / 3, ceiling)
    ax.set_xlim(1.0, 0.0)
    ax.minorticks_off()
    ax.set_xticks([1.0, 0.75, 0.5, 0.25, 0.0], ["last layer", "3/4", "1/2", "1/4", "input"])
    ticks = [10.0**k for k in range(math.ceil(math.log10(zero * 10)), math.floor(math.log10(ceiling)) + 1, 2)]
    ax.set_yticks([zero, *ticks], ["exactly 0", *(f"$10^{{{round(math.log10(t))}}}$" for t in ticks)])
    if ceiling > 1:
        ax.axhline(1.0, color=SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
        ax.text(
            0.01,
            1.0,
            "as large as the state itself",
            fontsize=8,
            color=SOFT,
            va="bottom",
            transform=ax.get_yaxis_transform(),
        )
    ax.axhline(zero, color=INK if equal else GRID, linewidth=2.6, zorder=2)
    ax.text(
        0.01,
        zero * 1.35,
        f"fixed-point states: every one bit-equal in {len(equal)} of {stacks} stacks",
        fontsize=8.5,
        color=INK,
        va="bottom",
        transform=ax.get_yaxis_transform(),
    )
    ax.set_xlabel("depth of the rebuilt state", color=INK, fontsize=9)
    ax.set_ylabel("relative error", color=INK, fontsize=9)
    label_ends(ax, ends)
