"""The figures on the pages behind the benchmarks page are what the files in docs/benchmarks say, goals that
are not met included."""

import json
import re

import pytest
from pages import ROOT, load

bench = load(ROOT / "docs" / "bench_tables.py")
FOLDER = ROOT / "docs" / "benchmarks"
PAGE, DATA = FOLDER / "equations.md", FOLDER / "ode_batches.json"
#: The pages of raw tables, and one beside them that has some of its own.
RAW = {
    "equations",
    "exactness",
    "frontier",
    "kernels",
    "memory",
    "peers",
    "pretrained",
    "small-models",
    "training-step",
    "compile",
}


def test_the_page_shows_the_measurements():
    pages = bench.pages()
    assert PAGE in pages and ROOT / "docs" / "compile.md" in pages and {page.stem for page in pages} == RAW
    for page, text in pages.items():
        assert "<!-- figures of" in text and page.read_text(encoding="utf-8") == text, (
            f"{page.name}: run python docs/generate.py"
        )


def marks():
    """(page, name of the file) of every mark."""
    texts = {page: page.read_text(encoding="utf-8") for page in bench.pages()}
    return [(page.name, name) for page, text in texts.items() for name in bench.OPENED.findall(text)]


def test_every_measurement_is_on_one_page():
    """A new file of ``revstep bench`` becomes part of a page by one mark; without it nobody would see the
    figures.
    """
    measured = {path.stem for path in bench.bench.results(FOLDER, bench.bench.find_cases())}
    named = [name for _, name in marks()]
    assert sorted(named) == sorted(measured), (
        "put its two lines (docs/bench_tables.py) on a page of docs/benchmarks"
    )


def test_links_lead_to_the_file_from_either_folder():
    result = json.loads(DATA.read_text(encoding="utf-8"))
    assert "([all numbers](benchmarks/ode_batches.json))" in bench.section(
        "ode_batches", result, ROOT / "docs" / "compile.md"
    )
    assert "([all numbers](ode_batches.json))" in bench.section("ode_batches", result, PAGE)


def test_a_new_measurement_takes_one_mark(tmp_path, monkeypatch):
    """A file beside the others, and its two lines on a page."""
    for path in FOLDER.glob("pretrained_*.json"):
        (tmp_path / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    data = json.loads((FOLDER / "pretrained_smollm2_lora.json").read_text(encoding="utf-8"))
    data["case"] |= {"model": "gemma3", "adapting": "full"}
    (tmp_path / "pretrained_new.json").write_text(json.dumps(data), encoding="utf-8")
    monkeypatch.setattr(bench, "FOLDER", tmp_path)
    text = bench.with_figures(
        (OPEN + CLOSE).replace("ode_batches", "pretrained_new"), FOLDER / "pretrained.md"
    )
    assert "all weights, 200 steps" in text and text.count("| Blend, c by layer |") == 1


def test_a_figure_that_is_not_the_measured_one_is_found():
    """The check above, on a page in which one digit was changed."""
    text = PAGE.read_text(encoding="utf-8")
    figure = f"{json.loads(DATA.read_text())['parts']['two-body']['rows'][0]['steps_per_second'] / 1e6:.2f}"
    assert figure in text and bench.with_figures(text.replace(figure, "99.99"), PAGE) == text


def test_a_goal_that_is_not_met_is_shown_as_such():
    data = json.loads(DATA.read_text(encoding="utf-8"))
    g = data["parts"]["two-body"]["goals"][0]
    g.update(value=0.5, met=False)
    data["parts"]["two-body"]["skipped"] = [{"what": "a rival", "reason": "not installed"}]
    text = bench.section("ode_batches", data)
    assert (
        f"| {g['what']} | 0.5 | at least 3 | NOT met |" in text
        and "Left out: a rival: not installed." in text
    )


def test_every_goal_and_every_row_is_shown():
    files = [json.loads((FOLDER / f"ode_{name}.json").read_text()) for name in ("batches", "neural")]
    text = PAGE.read_text(encoding="utf-8")
    for key in ("device", "date", "commit", "scipy", "rebound", "torchdiffeq"):
        assert all(key in data["environment"] for data in files)
    parts = {name: part for data in files for name, part in data["parts"].items()}
    assert set(parts) == {"two-body", "pendulums", "neural-field"}
    for part in parts.values():
        assert not part["skipped"] and all(
            f"| {g['what'].replace('|', chr(92) + '|')} |" in text for g in part["goals"]
        )
        rows = part["rows"] if "rows" in part else [row for rows in part["steps"].values() for row in rows]
        assert all(f"| {row['name']} |" in text for row in rows)


OPEN, CLOSE = (
    "<!-- figures of docs/benchmarks/ode_batches.json, by docs/generate.py -->\n",
    "<!-- /figures of ode_batches.json -->",
)


@pytest.mark.parametrize(
    "page",
    [OPEN, OPEN + CLOSE + OPEN + CLOSE, OPEN + CLOSE.replace("ode_batches", "trunk"), OPEN + OPEN + CLOSE],
)
def test_marks_that_do_not_pair_are_refused(page):
    with pytest.raises(ValueError, match="each once, in turn"):
        bench.with_figures(page)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=re.escape("docs/benchmarks/gone.json is not there")):
        bench.with_figures((OPEN + CLOSE).replace("ode_batches", "gone"))
    assert bench.with_figures("no marks") == "no marks"
