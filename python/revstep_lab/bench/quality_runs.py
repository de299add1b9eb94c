"""Finished training runs in one JSON file, so that a long benchmark goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from revstep.errors import ConfigError
from revstep.lm._files import write_atomic

from ..drawing import INK, PALETTE, SOFT, figure, label_ends, save


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
            stored = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(stored, dict) or stored.get("case") != self.case:
                had = stored.get("case") or {} if isinstance(stored, dict) else {}
                differing = [
                    f"{k} {had.get(k)!r} there, {v!r} here" for k, v in self.case.items() if had.get(k) != v
                ]
                raise ConfigError(
                    f"{path} holds runs of another case ({'; '.join(differing)}): go on with its options, or"
                    " name another file"
                )
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


def draw_curves(path: Path, result: dict[str, Any]) -> list[Path]:
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
