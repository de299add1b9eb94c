"""Points of peak bytes and seconds: which of them another one dominates, what was measured so far, and their
picture.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from revstep._files import write_atomic
from revstep.errors import ConfigError

from ..drawing import INK, PALETTE, SOFT, figure, label_ends, save
from .results import stored_case

#: Times whose ratio is closer to one than this count as equal: single rounds scatter by as much. Bytes of
#: the allocator do not scatter.
NOISE = 0.02


def dominated(rows: Sequence[dict], noise: float = NOISE) -> dict[str, list[str]]:
    """``{name: names of the rows that dominate it}``.

    A row dominates another where its peak is no larger and its time no longer, and one of the two is less.
    Times are compared by the median ratio of single rounds, and count as equal within ``noise``.

    Args:
        rows: each with ``name``, ``peak`` (bytes) and ``ratios`` (name -> time beside that row's).
        noise: of a ratio of times.
    """
    return {
        row["name"]: [other["name"] for other in rows if other is not row and _dominates(other, row, noise)]
        for row in rows
    }


def _dominates(a: dict, b: dict, noise: float) -> bool:
    time = a["ratios"][b["name"]]
    if a["peak"] > b["peak"] or time > 1 + noise:
        return False
    return a["peak"] < b["peak"] or time < 1 - noise


# ---- What was measured so far, in a file that is whole after every point and every timed step ----


class Progress:
    """Peaks and seconds of a case by way.

    Args:
        path: the file; None: memory alone.
        case: what the figures are good for.

    Raises:
        ConfigError: the file is of another case.
    """

    def __init__(self, path: Path | None, case: dict[str, Any]):
        self.path, self.case = path, json.loads(json.dumps(case))
        self.memory: dict[str, dict] = {}
        self.seconds: dict[str, list[float]] = {}
        self.skipped: dict[str, str] = {}
        if path is not None and path.exists():
            stored = stored_case(path)
            whole = all(isinstance(stored.get(name), dict) for name in ("memory", "seconds", "skipped"))
            if not whole or stored.get("case") != self.case:
                raise ConfigError(f"{path} holds points of another case: name another file")
            self.memory, self.seconds = stored["memory"], stored["seconds"]
            self.skipped = stored["skipped"]

    def write(self) -> None:
        if self.path is None:
            return
        kept = {"case": self.case, "memory": self.memory, "seconds": self.seconds, "skipped": self.skipped}
        write_atomic(self.path, (json.dumps(kept, indent=1) + "\n").encode())


# ---- The picture: peak against time ----


def draw(
    path: Path,
    title: str,
    subtitle: str,
    rows: Sequence[dict],
    family: Callable[[str], int],
    unit: str = "seconds a step",
) -> list[Path]:
    """Peak against seconds, both logarithmic: a mark a point, hollow where another dominates it, a cross
    where it is predicted; the points that none dominates joined.

    Args:
        path: of the picture.
        title: of it.
        subtitle: device, versions, command.
        rows: with ``name``, ``seconds``, ``peak``, ``dominated_by`` and ``predicted``.
        family: number of a row's colour.
        unit: of ``seconds``.

    Returns:
        The file.
    """
    colours = (INK, SOFT, PALETTE[4], PALETTE[1], PALETTE[0])
    fig, (ax,) = figure(1, 12.6, 0.26 * len(rows) + 3.2, 5.0, title, subtitle)
    ax.set(xscale="log", yscale="log")
    front = sorted((row["seconds"], row["peak"] / 1e6) for row in rows if not row["dominated_by"])
    ax.plot(*zip(*front), color=PALETTE[2], linewidth=1.0, zorder=1)
    for row in rows:
        colour = colours[family(row["name"])]
        hollow = bool(row["dominated_by"])
        ax.plot(
            [row["seconds"]], [row["peak"] / 1e6], linestyle="none", markersize=6,
            marker="x" if row["predicted"] else "o", color=colour,
            markerfacecolor="white" if hollow else colour, zorder=2,
        )  # fmt: skip
    ax.set_xlabel(f"{unit}, median", color=INK, fontsize=9)
    ax.set_ylabel("MB, peak above weights and optimiser state", color=INK, fontsize=9)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(_plain())
        axis.set_minor_formatter(_plain())
    ax.tick_params(which="both", labelsize=8, colors=SOFT)
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # fixed: labels are placed by them
    ends = [(row["seconds"], row["peak"] / 1e6, _label(row), colours[family(row["name"])]) for row in rows]
    label_ends(ax, ends, size=7.5)
    save(fig, path)
    return [path]


def _label(row: dict) -> str:
    marks = ["predicted"] * row["predicted"] + ["dominated"] * bool(row["dominated_by"])
    return f"{row['name']} ({', '.join(marks)})" if marks else row["name"]


def _plain() -> Any:
    from matplotlib.ticker import FuncFormatter

    return FuncFormatter(lambda value, _: f"{value:g}")
