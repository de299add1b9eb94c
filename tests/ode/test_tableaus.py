"""Tableaus: order conditions proved at import, seen on a closed form, and every wrong entry refused."""

import math
from dataclasses import replace

import numpy as np
import pytest

from revstep.errors import ConfigError
from revstep.ode import tableaus
from revstep.ode.tableaus import Tableau, trees

ALL = tableaus.available()


def _solve(table: Tableau, steps: int) -> float:
    """Error at t = 2 on y' = y cos t, y = exp(sin t): non-autonomous, so that the nodes count."""
    h, y = 2 / steps, 1.0
    for n in range(steps):
        ks: list[float] = []
        for row, c in zip(table.a, table.c, strict=True):
            ks.append((y + h * sum(a * k for a, k in zip(row, ks, strict=True))) * math.cos((n + c) * h))
        y += h * sum(b * k for b, k in zip(table.b, ks, strict=True))
    return abs(y - math.exp(math.sin(2.0)))


def test_there_are_as_many_trees_as_cayley_counted():
    assert [len(trees(n)) for n in range(1, 8)] == [1, 1, 2, 4, 9, 20, 48]


@pytest.mark.parametrize("name", ALL)
def test_the_order_is_seen_on_a_closed_form(name):
    errors = [_solve(ALL[name], 16 << k) for k in range(4)]
    # Each of the 128 steps rounds a number below e, by at most 1 ulp of 2: this is thrice the worst case.
    assert errors[-1] > 3 * 128 * 2.0**-52
    assert abs(-np.polyfit(range(4), np.log2(errors), 1)[0] - ALL[name].order) < 0.15


def test_the_names():
    assert {"euler", "explicit_midpoint", "heun2", "ralston2", "bosh3", "rk4", "dopri5"} <= set(ALL)
    with pytest.raises(ConfigError, match="no tableau 'rk5', expected one of bosh3"):
        tableaus.get("rk5")
    assert tableaus.get("rk4") is ALL["rk4"]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("delta", [1e-3, 1e-10])
def test_every_single_wrong_entry_is_refused(name, delta):
    table = ALL[name]
    for i in range(len(table.b)):
        with pytest.raises(ConfigError, match=f"tableau {name}.*(order|adds up)"):
            replace(table, b=(*table.b[:i], table.b[i] + delta, *table.b[i + 1 :]))
        with pytest.raises(ConfigError, match=rf"tableau {name}: node c\[{i}\]"):
            replace(table, c=(*table.c[:i], table.c[i] + delta, *table.c[i + 1 :]))
        for j in range(i):
            row = table.a[i]
            wrong = (*table.a[:i], (*row[:j], row[j] + delta, *row[j + 1 :]), *table.a[i + 1 :])
            with pytest.raises(ConfigError, match=rf"tableau {name}: node c\[{i}\]"):
                replace(table, a=wrong)


def test_a_wrong_node_that_matches_its_row_is_refused_by_the_trees():
    """gl4 of another library had such a one: order 4 on y' = A y, order 1 on y' = cos t."""
    with pytest.raises(ConfigError, match="rk4 is not of order 4: the condition of the tree"):
        replace(ALL["rk4"], a=((), (1 / 2,), (0.0, 0.51), (0.0, 0.0, 1.0)), c=(0.0, 1 / 2, 0.51, 1.0))


def test_an_entry_moved_within_its_row_is_refused_by_the_trees():
    table = ALL["dopri5"]
    row = table.a[5]
    for delta in (1e-3, 1e-10):
        with pytest.raises(ConfigError, match="dopri5 is not of order 5: the condition of the tree"):
            replace(table, a=(*table.a[:5], (row[0] + delta, row[1], row[2] - delta, *row[3:])))


@pytest.mark.parametrize("name", ALL)
def test_a_wrong_order_is_refused(name):
    table = ALL[name]
    if table.order < 5:
        with pytest.raises(ConfigError, match=f"{name} is not of order {table.order + 1}"):
            replace(table, order=table.order + 1)
    if table.order > 1:
        with pytest.raises(
            ConfigError,
            match=(
                f"{name} claims order {table.order - 1}, but every condition of order {table.order} holds too"
            ),
        ):
            replace(table, order=table.order - 1)


BAD = {
    "implicit": (dict(a=((0.5,),), b=(1.0,), c=(0.5,)), "is not explicit: row 0 has 1 entries, expected 0"),
    "padded with zeros": (dict(a=((0.0, 0.0), (1.0, 0.0))), "is not explicit"),
    "too few nodes": (dict(c=(0.0,)), "expected one of each a stage"),
    "NaN": (dict(b=(math.nan, 0.5)), "no finite float"),
    "integer": (dict(b=(1, 0.5)), "no finite float"),
    "no source": (dict(source=""), "a paper or book"),
    "order 0": (dict(order=0), "a positive integer"),
}


@pytest.mark.parametrize("change, message", BAD.values(), ids=BAD)
def test_other_wrong_data_are_refused(change, message):
    with pytest.raises(ConfigError, match=f"heun2.*{message}"):
        replace(ALL["heun2"], **change)


def test_ralston_has_the_smallest_error_of_order_two():
    constants = {name: ALL[name].error_constant() for name in ("explicit_midpoint", "heun2", "ralston2")}
    assert min(constants, key=constants.get) == "ralston2"
