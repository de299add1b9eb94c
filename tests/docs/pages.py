"""Reading the documentation: code blocks, links, words that have no place in it."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def load(path: Path):
    """A script of the repository as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses and forward references look it up there
    spec.loader.exec_module(module)
    return module


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S))


def python_blocks(text: str) -> list[str]:
    """The Python blocks of a page, but for those marked ``<!-- needs: NAME -->`` where NAME is
    not installed.
    """
    found = re.findall(r"^(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)^```$", text, re.M | re.S)
    return [code for needed, code in found if not needed or importlib.util.find_spec(needed) is not None]


def anchors(text: str) -> set[str]:
    """The names that a forge gives to headings: lower case, punctuation dropped, spaces to dashes."""
    titles = re.findall(r"^#+ +(.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


def broken_links(page: Path, text: str | None = None) -> list[str]:
    """Relative links and images of a page that lead nowhere."""
    text = page.read_text(encoding="utf-8") if text is None else text
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if re.match(r"[a-z]+://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or not path.is_relative_to(ROOT):
            broken.append(f"{page.name}: {target}")
        elif anchor and anchor not in anchors(text if path == page else path.read_text(encoding="utf-8")):
            broken.append(f"{page.name}: {target} (no such heading)")
    return broken


#: Absolute paths of somebody's machine, temporary folders, package indexes. Written so that it does not match
#: itself.
FORBIDDEN = re.compile(
    r"(?<![\w.])/(?:root|home|Users|work|opt|mnt|srv|tmp)/\w+"
    r"|https?://\S+/simple\b|--(?:extra-)?index-url|PIP_[A-Z_]*INDEX[A-Z_]*"
)


def forbidden(text: str) -> list[str]:
    return [m.group(0) for m in FORBIDDEN.finditer(text)]
