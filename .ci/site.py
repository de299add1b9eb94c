"""The built site, looked at: every link and picture leads somewhere, and Chromium shows pages with their
text, pictures and search.

Usage: python .ci/site.py FOLDER
Exit code 1 and a sentence a fault. Needs Chromium, and Pillow for the picture of the first page.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import tempfile
import threading
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from page import BROWSERS, FLAGS, blank
from PIL import Image

#: Pages that are shown: the first one, one of the reference, one with pictures and tables.
SHOWN = ("", "reference/stack/", "hf/")


class _Targets(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids.add(given.get("id") or "")
        target = given.get("href" if tag == "a" else "src")
        if tag in ("a", "img") and target:
            self.targets.append(target)


def parsed(page: Path) -> _Targets:
    found = _Targets()
    found.feed(page.read_text(encoding="utf-8"))
    return found


def broken(site: Path) -> list[str]:
    """Links and pictures that lead nowhere, as sentences."""
    pages = {page: parsed(page) for page in sorted(site.rglob("*.html")) if page.name != "404.html"}
    faults = []
    for page, found in pages.items():
        for target in found.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            path = path / "index.html" if path.is_dir() else path
            if not path.exists():
                faults.append(f"{page.relative_to(site)}: {target} is not there")
            elif parts.fragment and path in pages and unquote(parts.fragment) not in pages[path].ids:
                faults.append(f"{page.relative_to(site)}: {target} has no such place")
    return faults


def found_by_search(site: Path, words: tuple[str, ...]) -> list[str]:
    """Words that the search index does not know."""
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    text = " ".join(entry["title"] + " " + entry["text"] for entry in index["docs"])
    return [f"the search does not find {word!r}" for word in words if word not in text]


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


def shown(site: Path) -> list[str]:
    """What a browser does not show, as sentences."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return ["there is no Chromium to look at the site with"]
    handler = functools.partial(_Quiet, directory=str(site))
    faults = []
    with (
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server,
        tempfile.TemporaryDirectory() as folder,
    ):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for place in SHOWN:
            address = f"http://127.0.0.1:{server.server_address[1]}/{place}"
            picture = Path(folder, "page.png")
            command = [
                browser,
                *FLAGS,
                "--virtual-time-budget=5000",
                "--window-size=1300,1500",
                f"--screenshot={picture}",
                "--dump-dom",
                address,
            ]
            run = subprocess.run(command, capture_output=True, text=True, timeout=120)
            name = place or "the first page"
            if 'class="md-search__input"' not in run.stdout or "<h1" not in run.stdout:
                faults.append(f"{name}: no heading or no search field")
            if not picture.exists():
                faults.append(f"{name}: nothing was drawn")
            elif why := blank(Image.open(picture)):
                faults.append(f"{name} {why}")
        server.shutdown()
    return faults


def main(site: Path) -> int:
    faults = [
        *broken(site),
        *found_by_search(site, ("ReversibleStack", "StackOptions", "carry")),
        *shown(site),
    ]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{len(list(site.rglob('*.html')))} pages, {len(faults)} faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
