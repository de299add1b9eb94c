"""The page of built-in fields leaves nothing unsaid, and the costs on the integrator's page are measured."""

import dataclasses
import json

import pages
import pytest

from revstep.ode import fields
from revstep.ode.fields._base import BuiltIn

generate = pages.load(pages.ROOT / "docs" / "generate.py")
page, cost = generate.fields_page, generate.field_cost
RECORD = json.loads(cost.FILE.read_text(encoding="utf-8"))


def faults(name, cls):
    """What the section of a field leaves unsaid."""
    text, found = page.section(name, cls), []
    for f in dataclasses.fields(cls):
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{f.name}` |")]
        if page.NOT_FOUND in row:
            found.append(f"{name} {f.name}: no words")
        elif f.name not in ("equation", "space", "masses") and not any(unit in row for unit in UNITS):
            found.append(f"{name} {f.name}: no unit")
    for kind in cls.kinds:
        (row,) = [line for line in text.splitlines() if line.startswith(f'| `"{kind}"` |')]
        if not all(key in row for key in page.example(cls, kind).integrals()):
            found.append(f"{name}: first integrals of {kind}")
    return found


UNITS = ("time", "length", "units of q", "a number", "1 / ")


@pytest.mark.parametrize("name", fields.available())
def test_every_argument_has_words_and_a_unit_and_every_kind_its_invariants(name):
    assert faults(name, fields.available()[name]) == []
    assert f"\n## {name}\n" in page.PAGE.read_text(encoding="utf-8")


@dataclasses.dataclass(frozen=True)
class Silent(BuiltIn):
    """q'' = -q.

    Args:
        stiffness: how stiff it is.
    """

    stiffness: float = 1.0
    mass: float = 1.0

    kinds = ("second",)
    equation = "second"

    def force(self, t, x):
        return -x

    def params(self):
        return ()


def test_a_field_that_says_too_little_is_found():
    assert faults("Silent", Silent) == ["Silent stiffness: no unit", "Silent mass: no words"]


def test_no_word_of_the_page_is_bold_by_accident():
    assert "**" not in pages.without_code(page.page())


# ---- what an evaluation costs ----


def test_the_table_is_that_of_the_data_and_says_where_it_comes_from():
    text = cost.text()
    assert all(cost.us(r["run"]) in text and r["field"] in text for r in RECORD["rows"])
    assert all(str(RECORD["environment"][k]) in text for k in ("device", "date", "torch", "commit"))
    assert RECORD["command"] == cost.COMMAND == "python docs/field_cost.py"
    assert {"numba.cfunc", "a C function, by ctypes", "built in"} <= {r["field"] for r in RECORD["rows"]}


def test_a_stale_table_is_found():
    right = (pages.ROOT / "docs" / "ode.md").read_text(encoding="utf-8")
    assert generate.with_cost(right) == right
    number = cost.us(RECORD["rows"][0]["run"])
    assert generate.with_cost(right.replace(number, "1 us")) == right
    for wrong in (right.replace(generate.COST[1], ""), right + generate.COST[0]):
        with pytest.raises(ValueError, match="once each"):
            generate.with_cost(wrong)


def orders(rows):
    """The loop on tensors costs far more than the function in it, and a compiled run far less than either."""
    python = [r for r in rows if r["itself"] is not None]
    compiled = [r["run"] for r in rows if r["itself"] is None]
    slow = all(r["run"] > 5 * r["itself"] for r in python)
    return slow and max(compiled) < min(r["run"] for r in python) / 50


def test_the_orders_of_magnitude_are_measured_again(monkeypatch):
    monkeypatch.setattr(cost, "STEPS", {"python": 50, "compiled": 50_000})
    monkeypatch.setattr(cost, "c_function", lambda folder: None)  # a compiler is not everywhere
    assert orders(cost.measure(2)) and orders(RECORD["rows"])


def test_invented_costs_are_found():
    rows = json.loads(json.dumps(RECORD["rows"]))
    rows[0]["run"] = rows[0]["itself"]
    assert not orders(rows)
    rows = json.loads(json.dumps(RECORD["rows"]))
    rows[-1]["run"] = rows[0]["run"]
    assert not orders(rows)
