"""What several commands print and write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..lm.files import write_atomic


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain text table with aligned columns."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    lines = ["  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (header, *rows)]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same as a table of Markdown."""
    cells = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells)


def verdicts(goals: Sequence[dict]) -> list[tuple[str, str, str, str]]:
    """``(what, value, bound, met or NOT met)`` of each goal of :func:`revstep.bench.runner.goal`."""
    return [(g["what"], f"{g['value']:.4g}", f"at {'least' if g['at_least'] else 'most'} {g['goal']:g}", "met" if g["met"] else "NOT met") for g in goals]


def write_json(path: str, data: Any) -> None:
    """``data`` to ``path``, whole or not at all. Raises OSError as ``open`` does."""
    write_atomic(Path(path), (json.dumps(data, indent=1) + "\n").encode())
