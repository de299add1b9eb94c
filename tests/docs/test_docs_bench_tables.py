"""The figures on the benchmarks page are what the files in docs/benchmarks say, goals that are not met
included.
"""

import json
import re

import pytest
from pages import ROOT, load

bench = load(ROOT / "docs" / "bench_tables.py")
PAGE, DATA = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks" / "ode.json"


def test_the_page_shows_the_measurements():
    pages = bench.pages()
    assert PAGE in pages and ROOT / "docs" / "compile.md" in pages
    for page, text in pages.items():
        assert "<!-- figures of" in text and page.read_text(encoding="utf-8") == text, (
            f"{page.name}: run python docs/generate.py"
        )


def test_a_figure_that_is_not_the_measured_one_is_found():
    """The check above, on a page in which one digit was changed."""
    text = PAGE.read_text(encoding="utf-8")
    figure = f"{json.loads(DATA.read_text())['parts']['two-body']['rows'][0]['steps_per_second'] / 1e6:.2f}"
    assert figure in text and bench.with_figures(text.replace(figure, "99.99")) == text


def test_a_goal_that_is_not_met_is_shown_as_such():
    data = json.loads(DATA.read_text(encoding="utf-8"))
    g = data["parts"]["two-body"]["goals"][0]
    g.update(value=0.5, met=False)
    data["parts"]["two-body"]["skipped"] = [{"what": "a rival", "reason": "not installed"}]
    text = bench.section("ode", data)
    assert (
        f"| {g['what']} | 0.5 | at least 1.5 | NOT met |" in text
        and "Left out: a rival: not installed." in text
    )


def test_every_goal_and_every_row_is_shown():
    data, text = json.loads(DATA.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    assert all(
        key in data["environment"] for key in ("device", "date", "commit", "scipy", "rebound", "torchdiffeq")
    )
    assert set(data["parts"]) == {"two-body", "pendulums", "neural-field"}
    for part in data["parts"].values():
        assert not part["skipped"] and all(
            f"| {g['what'].replace('|', chr(92) + '|')} |" in text for g in part["goals"]
        )
        rows = part["rows"] if "rows" in part else [row for rows in part["steps"].values() for row in rows]
        assert all(f"| {row['name']} |" in text for row in rows)


OPEN, CLOSE = (
    "<!-- figures of docs/benchmarks/ode.json, by docs/generate.py -->\n",
    "<!-- /figures of ode.json -->",
)


@pytest.mark.parametrize(
    "page", [OPEN, OPEN + CLOSE + OPEN + CLOSE, OPEN + CLOSE.replace("ode", "trunk"), OPEN + OPEN + CLOSE]
)
def test_marks_that_do_not_pair_are_refused(page):
    with pytest.raises(ValueError, match="each once, in turn"):
        bench.with_figures(page)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=re.escape("docs/benchmarks/gone.json is not there")):
        bench.with_figures((OPEN + CLOSE).replace("ode", "gone"))
    assert bench.with_figures("no marks") == "no marks"
