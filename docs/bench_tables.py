"""What docs/benchmarks/NAME.json says, between marks in pages of docs: the tables and goals that ``revstep
bench`` printed with it.
"""

from __future__ import annotations

import re
from pathlib import Path

from revstep_lab.commands import bench

DOCS = Path(__file__).resolve().parent
PAGES = ("benchmarks.md", "compile.md")
MARK = re.compile(
    r"(<!-- figures of docs/benchmarks/(\w+)\.json, by docs/generate\.py -->\n).*?(<!-- /figures of"
    r" (\w+)\.json -->)",
    re.S,
)


def with_figures(text: str, name: str = PAGES[0]) -> str:
    """The page of this name with its figures renewed.

    Raises:
        ValueError: a mark is not closed, or names a file that is not there.
    """
    found = {
        path.stem: result for path, result in bench.results(DOCS / "benchmarks", bench.find_cases()).items()
    }
    names = re.findall(r"<!-- figures of docs/benchmarks/(\w+)\.json", text)
    pairs = [(m[2], m[4]) for m in MARK.finditer(text)]
    if [(name, name) for name in names] != pairs or len(set(names)) != len(names):
        raise ValueError(
            f"docs/{name} opens the marks of {names} and closes {[close for _, close in pairs]}: expected"
            " each once, in turn"
        )
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"docs/benchmarks/{missing[0]}.json is not there: measure it with revstep bench --json, or take"
            f" its marks out of docs/{name}"
        )
    return MARK.sub(lambda m: f"{m[1]}\n{section(m[2], found[m[2]])}\n{m[3]}", text)


def section(name: str, result: dict) -> str:
    return bench.figures_of(result, bench.find_cases()[result["bench"]], f"benchmarks/{name}.json")


def pages() -> dict[Path, str]:
    """Path -> text as it should be."""
    return {DOCS / name: with_figures((DOCS / name).read_text(encoding="utf-8"), name) for name in PAGES}
