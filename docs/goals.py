"""The goals of the benchmarks page, each beside what the files in docs/benchmarks say: the worst and the best
of each, met or not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from goal_rows import ROWS

from revstep_lab.tables import table as markdown

DOCS = Path(__file__).resolve().parent
PAGE = "benchmarks.md"
BEGIN, END = "<!-- goals, from docs/benchmarks, by docs/generate.py -->", "<!-- /goals -->"
NOT_MEASURED = "not measured"


def parts_of(data: dict) -> list[dict]:
    """What has goals in a file: its parts, or the result itself, and what stands beside it there."""
    beside = [data[part] for part in ("checks", "against") if part in data]
    return [*data["parts"].values(), *beside] if "parts" in data else [data, *beside]


def _goals(name: str, pattern: str, folder: Path) -> list[float]:
    """Values of the goals of one file whose text the pattern matches."""
    data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    found = [g["value"] for part in parts_of(data) for g in part["goals"] if re.fullmatch(pattern, g["what"])]
    if not found:
        raise ValueError(f"docs/benchmarks/{name}.json has no goal {pattern!r}")
    return found


def verdict(values: list[float], bound: float, at_least: bool) -> str:
    """Met where the worst is."""
    if not values:
        return NOT_MEASURED
    good = [v >= bound if at_least else v <= bound for v in values]
    return "met" if all(good) else f"**met in {sum(good)} of {len(good)}**" if any(good) else "**not met**"


def table(folder: Path = DOCS / "benchmarks") -> str:
    rows = []
    for what, where, bound, at_least, sources in ROWS:
        values = [v for name, pattern in sources for v in _goals(name, pattern, folder)]
        ends = f"{min(values):.3g}" + (f" to {max(values):.3g}" if len(values) > 1 else "") if values else "-"
        # Short: the table is wide.
        files = ", ".join(f"[{k}](benchmarks/{name}.json)" for k, (name, _) in enumerate(sources, 1))
        rows.append(
            (
                what,
                where,
                f"{'>=' if at_least else '<='} {bound:g}",
                ends,
                verdict(values, bound, at_least),
                files,
            )
        )
    return markdown(("what", "where", "goal", "measured", "verdict", "files"), rows)


def with_goals(page: str, make: Callable[[], str] = table) -> str:
    """The page with its table renewed. Raises ValueError when the marks are not there once each."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise ValueError(f"docs/{PAGE} needs the lines {BEGIN!r} and {END!r} once each")
    before, rest = page.split(BEGIN)
    return f"{before}{BEGIN}\n\n{make()}\n\n{END}{rest.split(END)[1]}"
