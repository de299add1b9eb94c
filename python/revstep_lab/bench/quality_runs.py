"""Finished training runs in one JSON file, so that a long benchmark goes on where it stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from revstep.errors import ConfigError
from revstep.lm.files import write_atomic


class Runs:
    """Runs by (variant, seed, rate, steps), in the order they were done. ``path``: the file, whole after every run; None: memory alone.

    Raises:
        ConfigError: the file is of another case.
    """

    def __init__(self, path: Path | None, case: dict[str, Any]):
        self.path, self.case = path, json.loads(json.dumps(case))
        self._runs: list[dict[str, Any]] = []
        if path is not None and path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(kept, dict) or kept.get("case") != self.case:
                had = kept.get("case") or {} if isinstance(kept, dict) else {}
                other = [f"{k} {had.get(k)!r} there, {v!r} here" for k, v in self.case.items() if had.get(k) != v]
                raise ConfigError(f"{path} holds runs of another case ({'; '.join(other)}): go on with its options, or name another file")
            self._runs = kept["runs"]

    def all(self) -> list[dict[str, Any]]:
        return list(self._runs)

    def of(self, variant: str, seeds: Iterable[int], steps: int) -> list[dict[str, Any]]:
        """The finished runs of a variant, of that length, seed by seed."""
        return [run for seed in seeds for run in self._runs if (run["variant"], run["seed"], run["steps"]) == (variant, seed, steps)]

    def get(self, variant: str, seed: int, rate: float, steps: int, make: Callable[[str, int, float, int], dict[str, Any]]) -> dict[str, Any]:
        """The run, done by ``make`` if it is not there."""
        key = (variant, seed, rate, steps)
        for run in self._runs:
            if (run["variant"], run["seed"], run["rate"], run["steps"]) == key:
                return run
        run = json.loads(json.dumps(make(*key)))  # as it will be read back
        self._runs.append(run)
        if self.path is not None:
            write_atomic(self.path, (json.dumps({"case": self.case, "runs": self._runs}, indent=1) + "\n").encode())
        return run
