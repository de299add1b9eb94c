"""Tables of Markdown, and goals of the benchmark as their rows."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    cells = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(c.replace("|", "\\|") for c in row) + " |" for row in cells)


# ---- Goals of the benchmark as rows of a table ----


def rows(goals: Sequence[dict]) -> list[tuple[str, str, str, str]]:
    """``(what, value, bound, met or NOT met)`` of each goal of :func:`revstep_lab.bench.runner.goal`."""
    return [
        (
            g["what"],
            f"{g['value']:.4g}",
            f"at {'least' if g['at_least'] else 'most'} {g['goal']:g}",
            "met" if g["met"] else "NOT met",
        )
        for g in goals
    ]
