"""What is written of a benchmark's results: a table with one line a figure, pictures of rows and curves, and
the file of finished runs from which a long benchmark goes on.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

from revstep._files import read_bytes, read_json, write_atomic, write_output
from revstep.errors import ConfigError

from ..drawing import BOTTOM, INK, PALETTE, SOFT, TOP, figure, label_ends, save

# ------------------------------------------------------------------------------------------------------------
# A result of a benchmark as one line a figure: the same columns for every case, so that files of many
# machines and dates go into one table.

#: ``metric``: ``time`` (seconds of a call, or of a unit of work where the case counts one), ``time / ROW``
#: (median ratio), or the name of another figure. ``options``, ``packages``: JSON.
FIELDS = (
    "bench",
    "group",
    "name",
    "metric",
    "p20",
    "p50",
    "p80",
    "rounds",
    "options",
    "device",
    "threads",
    "date",
    "revstep",
    "commit",
    "torch",
    "python",
    "packages",
)
_ENVIRONMENT = ("device", "threads", "date", "revstep", "commit", "torch", "python")
_APART = ("case", "environment", "goals", "skipped")


def measurements(result: dict) -> Iterator[tuple[str, dict]]:
    """``(where it stands in the result, measurement)`` of every measurement, at any depth:
    ``("parts/two-body/rows", {"name": ..., "p50": ...})``.
    """
    return _walk({key: value for key, value in result.items() if key not in _APART}, ())


def _walk(value: object, path: tuple[str, ...]) -> Iterator[tuple[str, dict]]:
    if isinstance(value, dict) and {"name", "p20", "p50", "p80"} <= value.keys():
        yield "/".join(path), value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _walk(inner, (*path, str(key)))
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner, path)


def _figures(value: dict, name: str = "") -> Iterator[tuple[str, float]]:
    """Numbers of a measurement beside its times, by dotted name."""
    for key, inner in value.items():
        if isinstance(inner, dict):
            yield from _figures(inner, f"{name}{key}.")
        elif isinstance(inner, (int, float)) and not isinstance(inner, bool):
            yield f"{name}{key}", inner


def lines(result: dict) -> list[dict]:
    """One dictionary with the keys ``FIELDS`` for each figure of a result with ``bench``, ``case``,
    ``rounds`` and ``environment``.
    """
    env = result["environment"]
    shared = {
        "bench": result["bench"],
        "rounds": result["rounds"],
        "options": json.dumps(result["case"]),
        **{key: env[key] for key in _ENVIRONMENT},
        "packages": json.dumps({key: value for key, value in env.items() if key not in _ENVIRONMENT}),
    }
    out = []
    for group, m in measurements(result):
        here = {**shared, "group": group, "name": m["name"]}
        out.append({**here, "metric": "time", **{key: m[key] for key in ("p20", "p50", "p80")}})
        out += [{**here, "metric": f"time / {other}", "p50": ratio} for other, ratio in m["ratios"].items()]
        others = {
            key: value for key, value in m.items() if key not in ("p20", "p50", "p80", "ratios", "rounds")
        }
        out += [{**here, "metric": name, "p50": value} for name, value in _figures(others)]
    return out


def add_to_csv(path: str, result: dict) -> None:
    """Append the lines of a result to a file, which gets the header if it is new; whole or not at all.

    Raises:
        ConfigError: the file has another header. OSError: as ``open`` does.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    file = Path(path)
    before = ""
    if file.is_file():  # into a pipe or a device the lines go with their header
        try:
            before = read_bytes(file).decode("utf-8")
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not text in UTF-8 ({error}): name another file") from error
    if not before:
        writer.writeheader()
    elif before.splitlines()[0] != ",".join(FIELDS):
        raise ConfigError(
            f"{path} begins with {before.splitlines()[0]!r}, expected the columns {','.join(FIELDS)}: name"
            " another file"
        )
    writer.writerows(lines(result))
    write_output(
        file, (before + ("\n" if before and not before.endswith("\n") else "") + text.getvalue()).encode()
    )


# ------------------------------------------------------------------------------------------------------------
# Bars of a benchmark's rows: median times with their 20th and 80th percentiles, and peak bytes beside them
# where they were measured.

#: Inches a row, and for the names at the left.
_ROW, _NAMES = 0.27, 3.6
#: Between largest and smallest median from which the axis is logarithmic.
_WIDE = 20.0


def peak(m: dict) -> int | None:
    """Most bytes of a measurement, by the allocator."""
    return m["memory"]["peak"] if "memory" in m else m.get("bytes_kept")


def draw_rows(path: Path, title: str, subtitle: str, rows: list[dict]) -> None:
    """One figure of a group of measurements, first row on top."""
    with_bytes = all(peak(m) is not None for m in rows)
    height = TOP + BOTTOM + _ROW * len(rows)
    fig, axes = figure(1 + with_bytes, 11.4 if with_bytes else 8.6, height, 0.35, title, subtitle)
    width = fig.get_size_inches()[0]
    fig.subplots_adjust(left=_NAMES / width, right=1 - 0.35 / width, wspace=0.12)
    colours = [_colour(m["name"]) for m in rows]
    names = [m["name"] for m in rows]
    times = [m["p50"] for m in rows]
    unit, scale = _unit(max(times))
    whiskers = [[scale * (m["p50"] - m["p20"]) for m in rows], [scale * (m["p80"] - m["p50"]) for m in rows]]
    axes[0].barh(
        names,
        [scale * t for t in times],
        color=colours,
        height=0.62,
        xerr=whiskers,
        error_kw={"ecolor": INK, "elinewidth": 0.8, "capsize": 2},
    )
    _finish(axes[0], f"{unit}, median; whiskers: 20th and 80th percentile", times)
    if with_bytes:
        found = [peak(m) for m in rows]
        axes[1].barh(names, [b / 1e6 for b in found], color=colours, height=0.62)
        axes[1].set_yticklabels([])
        _finish(
            axes[1],
            "MB, peak above what was there before" if "memory" in rows[0] else "MB kept for backward",
            found,
        )
    save(fig, path)


def draw_curves(path: Path, title: str, subtitle: str, rows: list[dict]) -> None:
    """Time, and peak bytes where they were measured, of rows with ``x`` and ``way``: a line a way, all axes
    logarithmic.
    """
    panels = [("ms a step, median", lambda m: 1e3 * m["p50"])]
    if all(peak(m) is not None for m in rows):
        panels.append(("MB, peak above what was there before", lambda m: peak(m) / 1e6))
    fig, axes = figure(len(panels), 5.2 * len(panels), 3.9, 1.05, title, subtitle)
    ways = list(dict.fromkeys(m["way"] for m in rows))
    for ax, (label, value) in zip(axes, panels):
        ax.set(xscale="log", yscale="log")
        ax.set_xlabel(f"{rows[0]['name'].split(', ')[1].split()[0]}; {label}", color=INK, fontsize=9)
        ends = []
        for way, colour in zip(ways, (INK, SOFT, PALETTE[0])):
            points = [(m["x"], value(m)) for m in rows if m["way"] == way]
            ax.plot(*zip(*points), color=colour, linewidth=1.6, marker="o", markersize=3)
            ends.append((*points[-1], way, colour))
        label_ends(ax, ends)
    save(fig, path)


def _colour(name: str) -> str:
    """Stored by autograd dark, ours blue, the others grey."""
    if name == "plain" or "stored" in name:
        return INK
    return PALETTE[0] if name.startswith(("revstep", "reversible", "coupling", "keep=")) else SOFT


def _unit(largest: float) -> tuple[str, float]:
    return next(
        (u, s)
        for u, s in (("s", 1.0), ("ms", 1e3), ("us", 1e6), ("ns", 1e9))
        if largest * s >= 1 or u == "ns"
    )


def _finish(ax: Any, label: str, values: list) -> None:
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    ax.tick_params(axis="y", labelsize=8.5, labelcolor=INK, length=0)
    ax.set_xlabel(label, color=INK, fontsize=9)
    if min(values) > 0 and max(values) / min(values) > _WIDE:
        ax.set_xscale("log")


# ------------------------------------------------------------------------------------------------------------
# Finished training runs in one JSON file, so that a long benchmark goes on where it stopped.


def stored_case(path: Path) -> dict[str, Any]:
    """The object in a file of finished runs or points. Raises ConfigError: it holds none."""
    try:
        stored = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}; remove it, or name another file") from error
    if not isinstance(stored, dict):
        raise ConfigError(f"{path} holds no finished runs: name another file")
    return stored


#: What tells one run from another.
_KEY = {"variant", "seed", "rate", "steps"}


class Runs:
    """Runs by (variant, seed, rate, steps), in the order they were done. ``path``: the file, whole after
    every run; None: memory alone.

    Raises:
        ConfigError: the file is of another case.
    """

    def __init__(self, path: Path | None, case: dict[str, Any]):
        self.path, self.case = path, json.loads(json.dumps(case))
        self._runs: list[dict[str, Any]] = []
        if path is not None and path.exists():
            stored = stored_case(path)
            if not isinstance(stored.get("runs"), list) or stored.get("case") != self.case:
                had = stored["case"] if isinstance(stored.get("case"), dict) else {}
                differing = [
                    f"{k} {had.get(k)!r} there, {v!r} here" for k, v in self.case.items() if had.get(k) != v
                ]
                raise ConfigError(
                    f"{path} holds runs of another case ({'; '.join(differing)}): go on with its options, or"
                    " name another file"
                )
            if not all(isinstance(run, dict) and _KEY <= run.keys() for run in stored["runs"]):
                raise ConfigError(f"{path} holds runs without their numbers: remove it, or name another file")
            self._runs = stored["runs"]

    def all(self) -> list[dict[str, Any]]:
        return list(self._runs)

    def of(self, variant: str, seeds: Iterable[int], steps: int) -> list[dict[str, Any]]:
        """The finished runs of a variant, of that length, seed by seed."""
        return [
            run
            for seed in seeds
            for run in self._runs
            if (run["variant"], run["seed"], run["steps"]) == (variant, seed, steps)
        ]

    def get(
        self,
        variant: str,
        seed: int,
        rate: float,
        steps: int,
        make: Callable[[str, int, float, int], dict[str, Any]],
    ) -> dict[str, Any]:
        """The run, done by ``make`` if it is not there."""
        key = (variant, seed, rate, steps)
        for run in self._runs:
            if (run["variant"], run["seed"], run["rate"], run["steps"]) == key:
                return run
        run = json.loads(json.dumps(make(*key)))  # as it will be read back
        self._runs.append(run)
        if self.path is not None:
            write_atomic(
                self.path, (json.dumps({"case": self.case, "runs": self._runs}, indent=1) + "\n").encode()
            )
        return run


# ------------------------------------------------------------------------------------------------------------
# Loss against tokens and against seconds of every variant of :mod:`..cases.quality`, a figure each.

_STYLES = ("-", (0, (5, 2)), (0, (1, 1.5)))


def points(result: dict[str, Any], m: dict[str, Any], axis: str) -> list[tuple[float, float]]:
    """``(tokens or seconds, mean validation loss over seeds)``. Seconds: steps times the measured time of
    one.
    """
    case = result["case"]
    unit = 1.0 if axis == "tokens" else m["p50"] / (case["batch"] * case["context"])
    return [(at[0][0] * unit, mean(loss for _, loss in at)) for at in zip(*m["curves"], strict=True)]


def draw_quality(path: Path, result: dict[str, Any]) -> list[Path]:
    """One figure for each axis beside ``path``, the JSON file; returns the files. Variants that did not end
    are left out.
    """
    env, written = result["environment"], []
    shown = [m for m in result["measurements"] if m["loss"] is not None]
    for axis in ("tokens", "seconds"):
        title = f"Validation loss against {axis}, mean of {len(result['case']['seeds'])} seeds"
        fig, (ax,) = figure(
            1,
            9.6,
            5.4,
            2.6,
            title,
            f"{env['device']}, torch {env['torch']}, {env['date']}; revstep bench {result['bench']}",
        )
        ends = []
        for i, m in enumerate(shown):
            plain = m["name"] == "plain"
            colour = INK if plain else PALETTE[(i - 1) % len(PALETTE)]
            x, y = zip(*points(result, m, axis))
            ax.plot(
                x,
                y,
                color=colour,
                linestyle=_STYLES[(i - 1) // len(PALETTE) % len(_STYLES)] if i else "-",
                linewidth=2.4 if plain else 1.4,
            )
            ends.append((x[-1], y[-1], f"{m['name']}  {y[-1]:.3f}", colour))
        ax.set_xlabel(
            "training tokens" if axis == "tokens" else "seconds: steps times the measured time of a step",
            color=SOFT,
            fontsize=9,
        )
        ax.set_ylabel("validation loss, nats a byte", color=INK, fontsize=9)
        ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())  # fixed: labels are placed by them
        label_ends(ax, ends, size=8)
        file = path.with_name(f"{path.stem}-{axis}.png")
        save(fig, file)
        written.append(file)
    return written
