"""Loss against tokens and against seconds of every variant of :mod:`.quality`, a figure each."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

from ..drawing import INK, PALETTE, SOFT, figure, label_ends, save

_STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def points(result: dict[str, Any], m: dict[str, Any], axis: str) -> list[tuple[float, float]]:
    """``(tokens or seconds, mean validation loss over seeds)``. Seconds: steps times the measured time of one."""
    case = result["case"]
    unit = 1.0 if axis == "tokens" else m["p50"] / (case["batch"] * case["context"])
    return [(at[0][0] * unit, mean(loss for _, loss in at)) for at in zip(*m["curves"], strict=True)]


def draw_curves(path: Path, result: dict[str, Any]) -> list[Path]:
    """One figure for each axis beside ``path``, the JSON file; returns the files. Variants that did not end are left out."""
    env, written = result["environment"], []
    shown = [m for m in result["measurements"] if m["loss"] is not None]
    for axis in ("tokens", "seconds"):
        title = f"Validation loss against {axis}, mean of {len(result['case']['seeds'])} seeds"
        fig, (ax,) = figure(1, 9.6, 5.4, 2.6, title, f"{env['device']}, torch {env['torch']}, {env['date']}; revstep bench {result['bench']}")
        ends = []
        for i, m in enumerate(shown):
            plain = m["name"] == "plain"
            colour = INK if plain else PALETTE[(i - 1) % len(PALETTE)]
            x, y = zip(*points(result, m, axis))
            ax.plot(x, y, color=colour, linestyle=_STYLES[(i - 1) // len(PALETTE) % len(_STYLES)] if i else "-", linewidth=2.4 if plain else 1.4)
            ends.append((x[-1], y[-1], f"{m['name']}  {y[-1]:.3f}", colour))
        ax.set_xlabel("training tokens" if axis == "tokens" else "seconds: steps times the measured time of a step", color=SOFT, fontsize=9)
        ax.set_ylabel("validation loss, nats a byte", color=INK, fontsize=9)
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # fixed: labels are placed by them
        label_ends(ax, ends, size=8)
        file = path.with_name(f"{path.stem}-{axis}.png")
        save(fig, file)
        written.append(file)
    return written
