"""The table of goals says what the files say, and what was not measured."""

import json
import re

import pytest
from pages import ROOT, load

goals = load(ROOT / "docs" / "generate.py").goals
PAGE = ROOT / "docs" / "benchmarks.md"


def test_the_page_shows_the_goals():
    text = PAGE.read_text(encoding="utf-8")
    assert goals.with_goals(text) == text, "run: python docs/generate.py"
    assert text.count(goals.NOT_MEASURED) >= 4


def test_another_figure_is_another_table(tmp_path):
    """Of every row that has files: its goals moved beyond the bound are shown, and no longer met."""
    for what, where, _, at_least, sources in goals.ROWS:
        for name, pattern in sources:
            data = json.loads((ROOT / "docs" / "benchmarks" / f"{name}.json").read_text())
            for part in goals.parts_of(data):
                for g in part["goals"]:
                    if re.fullmatch(pattern, g["what"]):
                        g["value"] = 0.001 if at_least else 1234.0
            (tmp_path / f"{name}.json").write_text(json.dumps(data))
        for path in (ROOT / "docs" / "benchmarks").glob("*.json"):
            if not (tmp_path / path.name).exists():
                (tmp_path / path.name).write_text(path.read_text())
        row = next(
            (
                line
                for line in goals.table(tmp_path).splitlines()
                if line.startswith(f"| {what} | {where} |") and (not sources or sources[0][0] in line)
            ),
            "",
        )
        assert (
            ("**" in row and ("0.001" in row or "1.23e+03" in row)) if sources else goals.NOT_MEASURED in row
        ), what


def test_verdicts():
    assert (
        goals.verdict([1.0, 1.2], 1.25, False) == "met" and goals.verdict([1.3], 1.25, False) == "**not met**"
    )
    assert (
        goals.verdict([1.0, 1.3], 1.25, False) == "**met in 1 of 2**"
        and goals.verdict([0.95, 1.1], 0.9, True) == "met"
        and goals.verdict([], 1, True) == "not measured"
    )


def test_refused(tmp_path):
    with pytest.raises(ValueError, match="once each"):
        goals.with_goals("no marks")
    (tmp_path / "x.json").write_text('{"goals": []}')
    with pytest.raises(ValueError, match=r"x.json has no goal 'y'"):
        goals._goals("x", "y", tmp_path)


def test_goals_beside_empty_parts_are_found():
    """``revstep bench ode --against`` measures no part of its own, and has goals beside them."""
    assert [
        g["what"]
        for part in goals.parts_of({"parts": {}, "against": {"goals": [{"what": "x"}]}})
        for g in part["goals"]
    ] == ["x"]
    assert goals.parts_of({"parts": {"a": 1}, "goals": []}) == [1]


def test_goals_beside_the_result_are_found(tmp_path):
    """``revstep bench price`` has some of its own and some in two parts beside them."""
    values = {"states": 1.0, "checks": 2.0, "against": 3.0}
    what = {part: [{"what": f"{part} / other", "value": value}] for part, value in values.items()}
    beside = {part: {"goals": what[part]} for part in ("checks", "against")}
    data = {"goals": what["states"], **beside}
    (tmp_path / "price.json").write_text(json.dumps(data))
    assert [goals._goals("price", f"{part} / other", tmp_path) for part in what] == [[1.0], [2.0], [3.0]]
    (tmp_path / "price.json").write_text(json.dumps({**data, "checks": {"goals": []}}))
    with pytest.raises(ValueError, match="no goal"):
        goals._goals("price", "checks / other", tmp_path)
