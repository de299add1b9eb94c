"""What one part of ``revstep verify`` measured, for the table, the JSON file and the page."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """Claims of one part.

    Attributes:
        rows: of the printed table. record: of the JSON file. details: a line a claim. failures: label and
            Result of each claim that fails.
        cells: the table's, with kind and words, where a part has them.
    """

    name: str
    header: Sequence[str]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    record: list[dict[str, Any]] = field(default_factory=list)
    details: list[str] = field(default_factory=list)
    failures: list[tuple[str, Any]] = field(default_factory=list)
    claims: int = 0
    cells: dict[Any, Any] = field(default_factory=dict)

    def add(self, label: str, results: list, keys: dict[str, Any]) -> None:
        """The results of one case."""
        self.claims += len(results)
        self.failures += [(label, r) for r in results if not r.ok]
        self.details += [f"{label}: {r}" for r in results]
        self.record.append({**keys, "results": [r.to_dict() for r in results]})


def watched(rows: list, suite: Iterator[tuple[Any, list]]) -> Iterator[tuple[Any, list]]:
    """The suite's results as they come, with a count on a terminal."""
    shown = sys.stderr.isatty()
    for n, found in enumerate(suite, 1):
        if shown:
            print(f"\r{n} of {len(rows)}", end="\n" if n == len(rows) else "", file=sys.stderr, flush=True)
        yield found


def error_cell(results: list) -> str:
    """``exact``, ``0 here`` where nothing is claimed, or the largest measured error, or FAILS."""
    if not all(r.ok for r in results):
        return "FAILS"
    worst = max(r.measured for r in results)
    if worst == 0.0:
        return "exact" if results[0].bound == 0.0 else "0 here"
    return f"off by {worst:.1e}"
