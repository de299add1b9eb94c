"""The ODE section of the benchmarks page is what docs/benchmarks/ode.json says, goals that are not met included."""

import dataclasses
import json

import pytest
from pages import ROOT, load

bench = load(ROOT / "docs" / "ode_bench.py")
PAGE, DATA = ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "benchmarks" / "ode.json"


def test_the_page_shows_the_measurements():
    (page, text), = bench.pages().items()  # fmt: skip
    assert page == PAGE and page.read_text(encoding="utf-8") == text, "run: python docs/generate.py"


def test_a_figure_that_is_not_the_measured_one_is_found():
    """The check above, on a page in which one digit was changed."""
    text = PAGE.read_text(encoding="utf-8")
    figure = f"{json.loads(DATA.read_text())['parts']['two-body']['rows'][0]['steps_per_second'] / 1e6:.2f}"
    assert figure in text and bench.with_section(text.replace(figure, "99.99")) == text


def test_a_goal_that_is_not_met_is_shown_as_such(monkeypatch, tmp_path):
    data = json.loads(DATA.read_text(encoding="utf-8"))
    g = data["parts"]["two-body"]["goals"][0]
    g.update(value=0.5, met=False)
    data["parts"]["two-body"]["skipped"] = [{"what": "a rival", "reason": "not installed"}]
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "ode.json").write_text(json.dumps(data))
    monkeypatch.setattr(bench, "DOCS", tmp_path)
    assert f"| {g['what']} | 0.5 | at least 1.5 | NOT met |" in bench.section() and "Left out: a rival: not installed." in bench.section()


def test_the_command_says_what_is_not_a_default():
    data = json.loads(DATA.read_text(encoding="utf-8"))
    data["case"] = json.loads(json.dumps(dataclasses.asdict(bench.OdeCase(parts=("pendulums",), return_steps=7))))
    assert bench._command(data | {"rounds": bench.ROUNDS}) == "revstep bench ode --parts pendulums --return-steps 7 --json ode.json"
    data["case"] = json.loads(json.dumps(dataclasses.asdict(bench.OdeCase())))
    assert bench._command(data | {"rounds": 3}) == "revstep bench ode --rounds 3 --json ode.json"


def test_every_goal_and_every_row_is_shown():
    data, text = json.loads(DATA.read_text(encoding="utf-8")), PAGE.read_text(encoding="utf-8")
    assert all(key in data["environment"] for key in ("device", "date", "commit", "scipy", "rebound", "torchdiffeq"))
    assert set(data["parts"]) == {"two-body", "pendulums", "neural-field"}
    for part in data["parts"].values():
        assert not part["skipped"] and all(f"| {g['what'].replace('|', chr(92) + '|')} |" in text for g in part["goals"])
        rows = part["rows"] if "rows" in part else [row for rows in part["steps"].values() for row in rows]
        assert all(f"| {row['name']} |" in text for row in rows)


@pytest.mark.parametrize("page", ["", f"{bench.BEGIN}\n{bench.BEGIN}\n{bench.END}", bench.BEGIN])
def test_a_page_without_its_marks_is_refused(page):
    with pytest.raises(ValueError, match="once each"):
        bench.with_section(page)
