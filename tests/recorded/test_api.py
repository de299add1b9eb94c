"""The public surface is the recorded one, and a change of it says itself and what it asks for."""

from __future__ import annotations

import inspect

import api
import pytest
from typing_extensions import deprecated

from revstep import _options

OLD = ["f(x: int)", "class Kept(...)", "class Gone(...)", "Gone.m(self)", "revstep train: --steps"]
NEW = ["f(x: int, y: int = 0)", "class Kept(...)", "class New(...)", "revstep train: --steps"]
UNSAID = "# Changelog\n\n## [Unreleased]\n\n- `f` takes y.\n\n## 0.1.0\n\n- `Gone` came.\n"


def test_the_surface_is_the_recorded_one():
    recorded = api.FILE.read_text(encoding="utf-8").splitlines()
    assert recorded == api.surface(), api.message(api.changes(recorded, api.surface()))


def test_changes_are_told_apart_and_named():
    found = api.changes(OLD, NEW)
    assert found == {
        "changed": ["f(x: int) -> now f(x: int, y: int = 0)"],
        "gone": ["class Gone(...)", "Gone.m(self)"],
        "new": ["class New(...)"],
    }
    text = api.message(found)
    assert "Gone.m(self)" in text and "docs/stability.md" in text and "api.py --write" in text


def test_what_went_must_stand_in_the_changelog():
    found = api.changes(OLD, NEW)
    assert api.unsaid(found, UNSAID) == ["class Gone(...)", "Gone.m(self)"]
    assert api.unsaid(found, UNSAID.replace("takes y", "takes y, `Gone` with `m` went")) == []
    assert api.unsaid(api.changes(OLD, [*OLD, "new(x)"]), UNSAID) == []


@pytest.mark.parametrize(
    "source, expected",
    [
        (
            "def f(a, /, b: int = 1, *c, d: 'str', **e) -> None: ...",
            "(a, /, b: int = 1, *c, d: str, **e) -> None",
        ),
        ("def f(a, *, b=print): ...", "(a, *, b = print)"),
        ("def f(a=object()): ...", "(a = <object object>)"),
    ],
)
def test_signatures_as_text(source, expected):
    names: dict = {}
    exec(f"from __future__ import annotations\n{source}", names)
    assert api.signature(names["f"]) == expected


def test_deprecated_names_are_marked():
    @deprecated("new_name since 0.2")
    def f(x: int) -> int:
        return x

    assert list(api.lines_of("a.f", f, set())) == ["a.f(x: int) -> int (deprecated)"]


def test_members_are_listed_once():
    """A subclass does not repeat what it has from a public class; private members are nobody's."""
    found = api.surface()
    assert any(line.startswith("revstep.Scheme.step(") for line in found)
    assert not any(line.startswith("revstep.Blend.step(") for line in found)
    assert not any("._" in line.split("(")[0] for line in found)
    assert len(found) == len(set(found))


def test_keywords_of_a_type_checker_are_the_options_of_a_stack():
    fields = {name: f.type for name, f in _options._FIELDS.items()}
    keywords = inspect.get_annotations(_options.StackKeywords)
    assert {name: kind.__forward_arg__ for name, kind in keywords.items()} | {
        "scheme": "Any",
        "state": "Any",
    } == fields
    assert inspect.get_annotations(_options.ModelKeywords).keys() == fields.keys() - {"scheme"}
