"""Figures of the guide pages: the tables are the data's, the data are what is measured, every method has its
row. Each check rejects something wrong.
"""

import copy
import json
import math

import pages
import pytest

from revstep import ode
from revstep_lab.verify import ode as suite

generate = pages.load(pages.ROOT / "docs" / "generate.py")
measure = pages.load(pages.ROOT / "docs" / "measure.py")
methods, tables = generate.methods, generate.tables
RECORD = json.loads(measure.FILE.read_text(encoding="utf-8"))


def faults(record):
    """Some of the cheap figures measured again. Kepler's force and the grid give the same bits everywhere;
    matrix products and a tanh do not.
    """
    found = []
    work = record["work"]["data"]["errors"]
    for equation, name, error in [
        ("second", "verlet", measure.kepler_error),
        ("second", "blanes_moan4", measure.kepler_error),
        ("first", "midpoint", measure.lotka_error),
    ]:
        again = error(ode.available()[name], measure.BUDGETS[0])
        if not math.isclose(work[equation][name][0], again, rel_tol=1e-3):
            found.append(f"{name}: {again}")
    short = measure.rounding((measure.ROUNDING_STEPS[0],))["states"]
    for name, state in record["rounding"]["data"]["states"].items():
        if state["returned"] != short[name]["returned"] or not math.isclose(
            state["energy"][0], short[name]["energy"][0], rel_tol=1e-3, abs_tol=1e-13
        ):
            found.append(f"{name}: {short[name]}")
    (row,) = [
        r for r in record["energy"]["data"] if (r["problem"], r["method"]) == ("oscillator", "reversible_rk4")
    ]
    again = max(
        map(abs, measure.oscillator(ode.available()["reversible_rk4"], "first", row["steps"][2]).change)
    )
    # One sample more, at the end of the shorter run.
    if not math.isclose(row["change"][2], again, rel_tol=0.02):
        found.append(f"energy: {again}")
    kind, scheme, depth = measure.FLOATS[1]
    again = measure.float_case(kind, scheme, depth)
    stored = record["floats"]["data"][1]
    if not all(stored[k] / 4 < again[k] < stored[k] * 4 for k in ("factor", "float32")):
        found.append(f"{kind} {scheme}: {again}")
    return found


def test_some_figures_are_measured_again():
    assert faults(RECORD) == []


def test_an_invented_figure_is_found():
    record = copy.deepcopy(RECORD)
    record["work"]["data"]["errors"]["second"]["verlet"][0] *= 0.9
    record["rounding"]["data"]["states"]["`Float(torch.float64)`"]["returned"] = True
    record["floats"]["data"][1]["factor"] /= 10
    next(
        r for r in record["energy"]["data"] if (r["problem"], r["method"]) == ("oscillator", "reversible_rk4")
    )["change"][2] *= 0.9
    assert len(faults(record)) == 4


def test_every_method_is_in_the_tables():
    listed = {n for n, m in ode.available().items() if not m.claims(m.equations[0]).in_expectation}
    errors = RECORD["work"]["data"]["errors"]
    for equation in ("first", "second"):
        assert set(errors[equation]) == {n for n in listed if equation in ode.available()[n].equations}, (
            "run python docs/measure.py work"
        )
    assert set(RECORD) == set(measure.PARTS) and len(RECORD["floats"]["data"]) == len(measure.FLOATS)
    assert [(r["problem"], r["method"]) for r in RECORD["energy"]["data"]] == [
        (p, n) for p, _, names in measure.ENERGY for n in names
    ]


@pytest.mark.parametrize("part", measure.PARTS)
def test_every_table_says_where_it_comes_from(part):
    name = next(n for n, (p, _) in tables.TABLES.items() if p == part)
    environment = RECORD[part]["environment"]
    assert all(
        environment[k] and str(environment[k]) in tables.block(name)
        for k in ("device", "date", "torch", "revstep", "commit")
    )
    assert f"`python docs/measure.py {part}`" in tables.block(name)


def test_a_changed_table_is_renewed():
    text = (pages.ROOT / "docs" / "energy-drift.md").read_text(encoding="utf-8")
    cell = tables.small(RECORD["rounding"]["data"]["states"]["`Float(torch.float64)`"]["off"])
    assert tables.renewed(text) == text and cell in text
    assert tables.renewed(text.replace(cell, "1.0e-99")) == text


def test_wrong_marks_are_refused():
    with pytest.raises(ValueError, match="needs its"):
        tables.renewed("<!-- figures: work_first, from docs/measure.py -->\n")
    with pytest.raises(ValueError, match="no table 'nothing'"):
        tables.renewed("<!-- figures: nothing, from docs/measure.py -->\n<!-- /figures -->")


def test_every_method_and_field_is_on_the_methods_page():
    page = (pages.ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name, method in ode.available().items():
        for equation in method.equations:
            c, part = (
                method.claims(equation),
                page.split(f"## Methods for {methods.WRITTEN[equation]}\n")[1].split("\n## ")[0],
            )
            (row,) = [line for line in part.splitlines() if line.startswith(f"| `{name}` |")]
            assert f"| {c.order}" in row and c.source in row
    assert all(f"| `{name}` |" in page for name in ode.fields.available())


def _record(**change):
    result = {"claim": "c", "ok": True, "measured": 0.0, "bound": 0.0, "unit": "error", "why": "", **change}
    return {
        "environment": RECORD["work"]["environment"], "claims": 1, "failed": int(not result["ok"]),
        "ode": [{"method": "verlet", "equation": "second", "property": "gradients", "results": [result]}],
    }  # fmt: skip


@pytest.mark.parametrize(
    "change, text",
    [
        ({}, "exact"),
        ({"measured": 3e-12, "bound": 1e-9}, "3e-12"),
        ({"ok": False, "measured": 1.0}, "FAILS"),
        ({"measured": 2e-3, "bound": math.inf, "why": "secular: slope"}, "(secular, 2e-03)"),
        ({"measured": 0.01, "bound": 0.15, "why": "slope 1.99 on a pendulum"}, "1.99"),
        ({"unit": "missed flips"}, "holds"),
        (
            {
                "claim": "not symplectic",
                "measured": 1e-12,
                "bound": 1.0,
                "why": "3 steps: defect 4.7e-01, rounding explains 1e-12",
            },
            "no, 5e-01",
        ),
        (
            {"measured": math.inf, "bound": math.inf, "why": "not bounded: the run left the range"},
            "(not bounded)",
        ),
    ],
)
def test_cells_of_what_was_verified(change, text):
    part = methods.measured_part(_record(**change))
    assert f"| `verlet` | {text} |" in part and "| `yoshida4` | not measured |" in part


def test_what_was_not_verified_is_called_so():
    assert "Not measured yet" in methods.measured_part(None)


@pytest.mark.skipif(
    not methods.FILE.is_file(),
    reason="no docs/benchmarks/verify.json: run revstep verify --json docs/benchmarks/verify.json",
)
def test_the_verified_methods_are_all_methods_and_nothing_fails():
    record = methods.verified()
    wanted = {(c.method, c.equation, c.property) for c in suite.cases()}
    assert set(methods.results(record)) == wanted and record["failed"] == 0
