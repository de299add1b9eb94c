"""What docs/benchmarks/NAME.json says, between marks in pages of docs: the tables and goals that ``revstep
bench`` printed with it.

A page of docs/benchmarks shows another file when these two lines stand on it, and ``python docs/generate.py``
has run:

    <!-- figures of docs/benchmarks/NAME.json, by docs/generate.py -->
    <!-- /figures of NAME.json -->
"""

from __future__ import annotations

import re
from os.path import relpath
from pathlib import Path

from revstep_lab.commands import bench

DOCS = Path(__file__).resolve().parent
FOLDER = DOCS / "benchmarks"
#: Where a text without a page of its own is thought to stand.
PAGE = DOCS / "benchmarks.md"
OPENED = re.compile(r"<!-- figures of docs/benchmarks/(\w+)\.json")
MARK = re.compile(
    r"(<!-- figures of docs/benchmarks/(\w+)\.json, by docs/generate\.py -->\n).*?(<!-- /figures of"
    r" (\w+)\.json -->)",
    re.S,
)


def with_figures(text: str, page: Path = PAGE) -> str:
    """The text of this page with its figures renewed.

    Raises:
        ValueError: a mark is not closed, or names a file that is not there.
    """
    found = {path.stem: result for path, result in bench.results(FOLDER, bench.find_cases()).items()}
    name = f"docs/{page.relative_to(DOCS).as_posix()}"
    names = OPENED.findall(text)
    pairs = [(m[2], m[4]) for m in MARK.finditer(text)]
    if [(name, name) for name in names] != pairs or len(set(names)) != len(names):
        raise ValueError(
            f"{name} opens the marks of {names} and closes {[close for _, close in pairs]}: expected each"
            " once, in turn"
        )
    if missing := [name for name in names if name not in found]:
        raise ValueError(
            f"docs/benchmarks/{missing[0]}.json is not there: measure it with revstep bench --json, or take"
            f" its marks out of {name}"
        )
    return MARK.sub(lambda m: f"{m[1]}\n{section(m[2], found[m[2]], page)}\n{m[3]}", text)


def link(name: str, page: Path = PAGE) -> str:
    """The way from a page to a file of docs/benchmarks."""
    return Path(relpath(FOLDER / f"{name}.json", page.parent)).as_posix()


def section(name: str, result: dict, page: Path = PAGE) -> str:
    return bench.figures_of(result, bench.find_cases()[result["bench"]], link(name, page))


def pages() -> dict[Path, str]:
    """Path -> text as it should be, of every page of docs/benchmarks and of two beside it that has marks."""
    candidates = (PAGE, DOCS / "compile.md", *sorted(FOLDER.glob("*.md")))
    texts = {page: page.read_text(encoding="utf-8") for page in candidates}
    return {page: with_figures(text, page) for page, text in texts.items() if OPENED.search(text)}
