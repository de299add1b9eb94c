"""The short answers of the benchmarks page: a sentence or two, a small table and where they come from, made
of the files in docs/benchmarks.

An answer stands between two lines, on docs/benchmarks.md or on a page of docs/benchmarks:

    <!-- answer: NAME, by docs/generate.py -->
    <!-- /answer -->
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from bench_tables import FOLDER, PAGE, link

from revstep_lab.tables import table

MARK = re.compile(r"(<!-- answer: ([\w-]+), by docs/generate\.py -->\n).*?(<!-- /answer -->)", re.S)
WIDTH = 110


@dataclass
class Answer:
    """What is said, the table, and the names of the files that both are made of."""

    text: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    files: Sequence[str]


@cache
def read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def by_name(rows: Iterable[dict]) -> dict[str, dict]:
    return {row["name"]: row for row in rows}


def span(values: Iterable[float], form: str = "{:.2f}") -> str:
    """The least and the largest, as they are written; one of them where both are written alike."""
    some = sorted(values)
    ends = dict.fromkeys((form.format(some[0]), form.format(some[-1])))
    return " to ".join(ends)


def percent(change: float) -> str:
    """A change to two decimals, no minus before a zero."""
    return f"{hundreds(change):+.2f} %"


def hundreds(change: float) -> float:
    return round(100 * change, 2) + 0.0


def met(goals: Sequence[dict]) -> str:
    """``3 of 4``."""
    return f"{sum(g['met'] for g in goals)} of {len(goals)}"


def made_of(files: Sequence[str], page: Path) -> str:
    """Device, versions, date and command of each file, those of one machine and build together."""
    groups: dict[str, list[str]] = {}
    for name in files:
        data = read(name)
        env = data["environment"]
        commit = f" ({env['commit']})" if env.get("commit") else ""
        threads = f"{env['threads']} thread{'s' * (env['threads'] > 1)}"
        where = (
            f"{env['device']}, {threads}, torch {env['torch']}, revstep {env['revstep']}{commit},"
            f" {env['date']}"
        )
        groups.setdefault(where, []).append(f"`{data['command']}` ([{name}]({link(name, page)}))")
    return "\n".join(f"{where}: {', '.join(dict.fromkeys(commands))}." for where, commands in groups.items())


def shown(answer: Answer, page: Path) -> str:
    lines = answer.text.splitlines()  # one a paragraph, or one an entry of a list
    text = "\n".join(
        textwrap.fill(
            line,
            WIDTH,
            subsequent_indent="  " if line.startswith("- ") else "",
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines
    )
    parts = [text, table(answer.header, answer.rows) if answer.rows else "", made_of(answer.files, page)]
    return "\n\n".join(part for part in parts if part)


def answers() -> dict[str, Callable[[], Answer]]:
    import answers_beside
    import answers_models
    import answers_training

    return {**answers_training.ANSWERS, **answers_models.ANSWERS, **answers_beside.ANSWERS}


def with_answers(text: str, page: Path = PAGE) -> str:
    """The text of this page with its answers renewed.

    Raises:
        ValueError: a mark is not closed, or names no answer.
    """
    known = answers()
    if text.count("<!-- answer:") != len(MARK.findall(text)) or text.count("<!-- /answer -->") != len(
        MARK.findall(text)
    ):
        raise ValueError(
            f"{page.name}: a mark '<!-- answer: NAME, by docs/generate.py -->' needs its '<!-- /answer -->'"
        )
    if unknown := [m[2] for m in MARK.finditer(text) if m[2] not in known]:
        raise ValueError(f"{page.name}: no answer {unknown[0]!r}, expected one of {', '.join(known)}")
    return MARK.sub(lambda m: f"{m[1]}\n{shown(known[m[2]](), page)}\n\n{m[3]}", text)


def pages(texts: dict[Path, str]) -> dict[Path, str]:
    """Path -> text as it should be, of every page that may have answers, from the texts of some and else from
    disk.
    """
    candidates = {
        page: texts.get(page) or page.read_text(encoding="utf-8")
        for page in (PAGE, *sorted(FOLDER.glob("*.md")))
    }
    return {page: with_answers(text, page) for page, text in candidates.items() if "<!-- answer:" in text}
