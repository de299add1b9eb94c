"""The checks of ``.ci/page.py`` accept a page as ``revstep verify --html`` writes it, and reject one with a
picture lost, broken, blank or misplaced.
"""

import base64
import re

import numpy as np
import pages
import pytest

from revstep_lab.drawing import figure
from revstep_lab.verify.report import Cell, Page, Section
from revstep_lab.verify.report.page import picture

check = pages.load(pages.ROOT / ".ci" / "page.py")


def _picture(name, lines=9):
    fig, (ax,) = figure(1, 6.0, 3.0, 0.4, f"Figure {name}", "drawn for a test")
    for k in range(lines):
        ax.plot(np.linspace(0, 1, 50), np.sin(np.linspace(0, 9 + k, 50)))
    return picture(fig, name, f"Some lines that stand for {name}.", "A caption.", {})


@pytest.fixture(scope="module")
def text():
    pictures = [_picture(name) for name in check.PICTURES]
    rows = [[Cell("blend"), Cell("exact", "good", 'why "so"')], [Cell("x"), Cell("FAILS", "bad", "a < b")]]
    page = Page(
        {"device": "test", "threads": 1},
        "revstep verify --html page",
        2,
        ["x: a < b"],
        [Section("All", "words", ("a", "b"), rows, pictures, ["one", "two"])],
    )
    return page.html()


def _source(text, name):
    return re.search(rf'<img id="{name}"[^>]*src="(data:[^"]*)"', text)[1]


def _exchange(text, name, png):
    return text.replace(_source(text, name), "data:image/png;base64," + base64.b64encode(png).decode())


def _png(text, name):
    return base64.b64decode(_source(text, name).split(",")[1])


def _blank(text, name):
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.new("RGB", Image.open(BytesIO(_png(text, name))).size, "white").save(buffer, "png")
    return buffer.getvalue()


LAST = check.PICTURES[-1]
BROKEN = {
    "removed": (
        lambda t: re.sub(rf'<figure><img id="{LAST}".*?</figure>', "", t, flags=re.S),
        f"picture {LAST} is missing",
    ),
    "cut short": (lambda t: _exchange(t, LAST, _png(t, LAST)[:3000]), f"picture {LAST} does not decode"),
    "one byte changed": (
        lambda t: _exchange(t, LAST, _png(t, LAST)[:2000] + b"\x00\x01" + _png(t, LAST)[2002:]),
        f"picture {LAST} does not decode",
    ),
    "blank": (lambda t: _exchange(t, LAST, _blank(t, LAST)), f"picture {LAST} is blank"),
    "no PNG": (lambda t: _exchange(t, LAST, b"GIF89a"), f"picture {LAST} does not decode"),
    "fetched": (lambda t: t.replace(_source(t, LAST), "stability.png"), f"picture {LAST} does not decode"),
    "another one's id": (
        lambda t: t.replace(f'id="{LAST}"', f'id="{check.PICTURES[0]}"'),
        "is there 2 times",
    ),
    "no alt": (lambda t: re.sub(rf'(<img id="{LAST}" alt=")[^"]*', r"\1", t), "has no words"),
    "other size": (
        lambda t: re.sub(rf'(<img id="{LAST}"[^>]*width=")\d+', r"\g<1>100", t),
        "expected twice its place",
    ),
    "a script": (lambda t: t.replace("</body>", "<script>1</script></body>"), "not self-contained"),
    "a font from elsewhere": (
        lambda t: t.replace("<style>", "<style>@import 'x.css';"),
        "not self-contained",
    ),
}


def test_a_page_of_ours_is_accepted(text):
    assert check.file_faults(text) == []


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_page_is_rejected(text, name):
    change, fault = BROKEN[name]
    assert change(text) != text
    assert any(fault in f for f in check.file_faults(change(text))), check.file_faults(change(text))


def _has_browser():
    try:
        return bool(check.find_browser())
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not _has_browser(), reason="no Chromium here; the stage page of .ci/run brings one")
def test_the_browser_shows_what_is_there_and_misses_what_is_not(text, tmp_path):
    assert check.browser_faults(text, tmp_path / "page.png") == []
    found = check.browser_faults(_exchange(text, LAST, b"GIF89a"), tmp_path / "page.png")
    assert any(f"picture {LAST} was not decoded" in f for f in found), found
    wide = check.browser_faults(text.replace("<th>a</th>", f"<th>{'a' * 300}</th>"), tmp_path / "page.png")
    assert wide == ["1 table(s) do not fit into a window of 1200"], wide
    hidden = text.replace(
        "<style>",
        f"<style>#{LAST} {{ visibility: hidden }} #{check.PICTURES[0]} {{ position: absolute; left:"
        " -900px }",
    )
    found = check.browser_faults(hidden, tmp_path / "page.png")
    assert any(f"on the screenshot picture {LAST} is blank" in f for f in found) and any(
        "does not lie on the page" in f for f in found
    ), found


def test_layout_faults():
    def found(**change):
        boxes = {name: [50, 100 + 500 * k, 1000, 400] for k, name in enumerate(check.PICTURES)} | change
        return {
            "width": 1200,
            "height": 3000,
            "images": [
                {"id": n, "complete": True, "width": 2000, "height": 800, "box": b} for n, b in boxes.items()
            ],
        }

    assert check.layout_faults(found()) == []
    assert "overlap" in check.layout_faults(found(**{LAST: [50, 110, 1000, 400]}))[0]
    assert "distorted" in check.layout_faults(found(**{LAST: [50, 1700, 1000, 900]}))[0]
    assert "1 table(s) do not fit" in check.layout_faults(found() | {"clipped": 1})[0]
    assert "in a window of" in check.layout_faults(found() | {"width": 1500})[0]
