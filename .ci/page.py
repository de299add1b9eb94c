"""The page of ``revstep verify --html``, looked at as a browser shows it: every picture there, decoded, not
blank, nothing beside or over another.

Usage: python .ci/page.py DIR/index.html [--screenshot FILE.png] [--file-only]
Needs Pillow (it comes with matplotlib) and, unless --file-only, Chromium. Exit code 1 and a sentence a fault.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import itertools
import json
import re
import shutil
import subprocess
import sys
import tempfile
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

PICTURES = ("reconstruction-by-depth", "convergence", "energy-drift", "stability-region")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
WIDTH = 1200
#: A drawn figure has anti-aliased lines and text: hundreds of colours, and at least this share of pixels that
#: are not background.
COLOURS, INK = 40, 0.005
#: Attributes and style rules that make a browser ask somebody for something.
ASKS = re.compile(
    r"(?:src|href|srcset|action|poster)\s*=\s*(?![\"']?(?:data:|#))"
    r"|@import|url\((?![\"']?data:)|<script|<iframe|<link",
    re.I,
)
#: Run on a copy of the page, which itself allows no scripts.
PROBE = """<script>addEventListener("load", () => setTimeout(() => {
  const box = e => {
    const r = e.getBoundingClientRect();
    return [r.left + scrollX, r.top + scrollY, r.width, r.height];
  };
  const images = [...document.images].map(i => ({
    id: i.id, complete: i.complete, width: i.naturalWidth, height: i.naturalHeight, box: box(i)}));
  const all = document.documentElement;
  const wide = e => e.scrollWidth > e.clientWidth + 1;
  const clipped = [...document.querySelectorAll(".scroll")].filter(wide).length;
  const found = {images, width: all.scrollWidth, height: all.scrollHeight, clipped};
  document.body.setAttribute("data-found", JSON.stringify(found));
}, 50))</script>"""


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[dict[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.found.append({k: v or "" for k, v in attrs})


def blank(image: Image.Image) -> str:
    """Why an image shows nothing, or ""."""
    image = image.convert("RGB")
    colours = image.getcolors(image.width * image.height) or []
    share = 1 - max((n for n, _ in colours), default=0) / (image.width * image.height)
    return (
        ""
        if len(colours) >= COLOURS and share >= INK
        else f"is blank: {len(colours)} colours, {share:.2%} of it drawn"
    )


def file_faults(text: str) -> list[str]:
    """What is wrong with the file itself, as sentences."""
    images = _Images()
    images.feed(text)
    ids = [i.get("id", "") for i in images.found]
    faults = [f"picture {name} is missing" for name in PICTURES if name not in ids]
    faults += [
        f"picture {name} is there {ids.count(name)} times" for name in sorted(set(ids)) if ids.count(name) > 1
    ]
    for image in images.found:
        name = image.get("id") or "without id"
        if len(image.get("alt", "")) < 20:
            faults.append(f"picture {name} has no words for those who do not see it (alt)")
        try:
            head, _, data = image.get("src", "").partition(",")
            if head != "data:image/png;base64":
                raise ValueError(f"its source begins {head[:40]!r}")
            shown = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            shown.load()
        except Exception as error:  # whatever a broken file makes the decoder say
            faults.append(f"picture {name} does not decode: {error}")
            continue
        wanted = tuple(2 * int(image.get(side, 0)) for side in ("width", "height"))
        if any(abs(a - b) > 2 for a, b in zip(shown.size, wanted)):
            faults.append(
                f"picture {name} has {shown.size} pixels, expected twice its place on the page, {wanted}"
            )
        if why := blank(shown):
            faults.append(f"picture {name} {why}")
    rest = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]*", "data:", text)
    faults += [
        f"the page is not self-contained: {rest[max(0, m.start() - 20) : m.end() + 40]!r}"
        for m in ASKS.finditer(rest)
    ]
    return faults


def find_browser() -> str:
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError(f"no {', '.join(BROWSERS)} on the PATH: install Chromium")


def _browse(page: Path, folder: Path, *options: str) -> str:
    command = [find_browser(), *FLAGS, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    if run.returncode:
        raise RuntimeError(f"the browser ended with {run.returncode}: {run.stderr.strip()[-400:]}")
    return run.stdout


def browser_faults(text: str, screenshot: Path) -> list[str]:
    """What is wrong with the page as Chromium shows it. The screenshot stays."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        page = folder / "index.html"
        page.write_text(
            re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text).replace(
                "</body>", PROBE + "</body>"
            ),
            encoding="utf-8",
        )
        dom = _browse(page, folder, f"--window-size={WIDTH},900", "--virtual-time-budget=5000", "--dump-dom")
        match = re.search(r"data-found=\"([^\"]*)\"", dom)
        if not match:
            return ["the page did not load: the probe wrote nothing"]
        found = json.loads(html.unescape(match[1]))
        page.write_text(text, encoding="utf-8")  # the picture is taken of the page as it is
        _browse(page, folder, f"--window-size={WIDTH},{int(found['height'])}", f"--screenshot={screenshot}")
    return layout_faults(found) + pixel_faults(found, Image.open(screenshot))


def layout_faults(found: dict) -> list[str]:
    """Of what the probe saw: decoded sizes, places, overlaps."""
    faults = (
        [f"the page is {found['width']} pixels wide in a window of {WIDTH}"] if found["width"] > WIDTH else []
    )
    if found.get("clipped"):
        faults.append(f"{found['clipped']} table(s) do not fit into a window of {WIDTH}")
    shown = {i["id"]: i for i in found["images"]}
    faults += [f"picture {name} is not on the page" for name in PICTURES if name not in shown]
    for name, i in shown.items():
        if not i["complete"] or i["width"] < 200 or i["height"] < 100:
            faults.append(f"picture {name} was not decoded by the browser: {i['width']} x {i['height']}")
        left, top, width, height = i["box"]
        if left < 0 or left + width > WIDTH or top < 0 or width < 200 or height < 100:
            faults.append(f"picture {name} does not lie on the page: {i['box']}")
        elif i["width"] and abs(width / height - i["width"] / i["height"]) > 0.02:
            faults.append(
                f"picture {name} is distorted: {width:.0f} x {height:.0f} shown of {i['width']} x"
                f" {i['height']}"
            )
    placed = sorted((i["box"][1], i["box"][1] + i["box"][3], name) for name, i in shown.items())
    faults += [f"pictures {a[2]} and {b[2]} overlap" for a, b in itertools.pairwise(placed) if b[0] < a[1]]
    return faults


def pixel_faults(found: dict, screenshot: Image.Image) -> list[str]:
    """Each picture's place on the screenshot shows something."""
    faults = []
    for i in found["images"]:
        left, top, width, height = (round(v) for v in i["box"])
        if top + height > screenshot.height or left + width > screenshot.width:
            faults.append(f"the screenshot, {screenshot.size}, does not reach picture {i['id']}")
        elif why := blank(screenshot.crop((left, top, left + width, top + height))):
            faults.append(f"on the screenshot picture {i['id']} {why}")
    return faults


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--screenshot", type=Path, help="keep the screenshot")
    parser.add_argument("--file-only", action="store_true", help="without a browser")
    args = parser.parse_args(argv)
    text = args.page.read_text(encoding="utf-8")
    faults = file_faults(text)
    if not args.file_only:
        with tempfile.TemporaryDirectory() as folder:
            faults += browser_faults(text, args.screenshot or Path(folder) / "page.png")
    for fault in faults:
        print(f"page: {fault}", file=sys.stderr)
    print(
        f"{args.page}: {'rejected' if faults else f'{len(PICTURES)} pictures, each there, decoded and drawn'}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
