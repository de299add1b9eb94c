"""What methods say of themselves beside their order: when they look at the field, and whether they keep two
copies of y.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from revstep import ode
from revstep.ode import compositions
from revstep.ode._equations import FIRST
from revstep.ode.methods import ReversibleRK, SplittingMethod

EVERY = [(name, equation) for name, m in ode.available().items() for equation in m.equations]
STEPS, H, T0 = 6, 0.25, 3.0


#: The field can be asked at any time, so that nothing is extrapolated.
ANY = (-np.inf, np.inf)


def looked_at(method, equation: str, step: int) -> tuple[float, float]:
    """The least and the largest time at which the field is asked in a run of ``step`` steps, in steps from
    its start.
    """
    seen: list[float] = []

    def f(t, x):
        seen.append((t - T0) / H)
        return -x

    one = np.array([0.3])
    field, start = {
        "first": (ode.FirstOrder(f, interval=ANY), one),
        "second": (ode.SecondOrder(f, interval=ANY), (one, one)),
        "separable": (ode.Separable(f, f, interval=ANY), (one, one)),
    }[equation]
    ode.integrate(field, start, scheme=method, h=H, steps=step, t0=T0)
    return min(seen), max(seen)


@pytest.mark.parametrize("name, equation", EVERY)
def test_reach_is_where_the_field_is_looked_at(name, equation):
    method = ode.available()[name]
    low, high = method.reach(equation)
    assert low <= 0.0 and high >= 1.0
    least, most = looked_at(method, equation, STEPS)
    if low < 0.0:
        assert least == pytest.approx(low, abs=1e-12)
    else:
        assert least >= -1e-12
    if high > 1.0:
        assert most == pytest.approx(STEPS - 1 + high, abs=1e-12)
    else:
        assert most <= STEPS + 1e-12


def test_a_reach_that_is_made_up_is_noticed():
    """yoshida4 looks a third of a step outside; said to stay inside, it fails the test above."""

    class Inside(SplittingMethod):
        def reach(self, equation):
            return 0.0, 1.0

    method = Inside(ode.available()["yoshida4"].data)
    least, most = looked_at(method, FIRST, STEPS)
    assert least < -0.3 and most > STEPS + 0.3


def test_nodes_beyond_the_step_are_in_the_reach():
    """Runge-Kutta bases look at their nodes, forwards from the start and backwards from the end."""
    rk = ode.available()["reversible_rk4"].tableau
    late = dataclasses.replace(rk, name="late", a=((), (1.5,)), b=(2 / 3, 1 / 3), c=(0.0, 1.5), order=2)
    assert ReversibleRK(late).reach(FIRST) == (-0.5, 1.5)


@pytest.mark.parametrize("name, equation", EVERY)
def test_copies_hold_the_same_quantity(name, equation):
    """Both slots are y and stay near one another; where they are not, no distance is claimed and nothing is
    watched.
    """
    method = ode.available()[name]
    if method.copies(equation):
        assert method.apart_limit is not None and 0 < method.apart_limit <= 1
        start = np.array([0.7, -0.4])
        turn = lambda t, y: np.array([y[1], -y[0]])  # noqa: E731
        run = ode.integrate(turn, start, scheme=method, h=0.05, steps=40, scale=1.0)
        u, v = (s.double() * 2.0**-55 for s in run.final)
        truth = np.array([0.7 * np.cos(2) - 0.4 * np.sin(2), -0.7 * np.sin(2) - 0.4 * np.cos(2)])
        assert np.abs(u.numpy() - truth).max() < 0.1 and np.abs(v.numpy() - truth).max() < 0.1
        assert float((u - v).abs().max()) < method.apart_limit
    else:
        assert equation != FIRST or name in ("midpoint", "blend", "midpoint_blend")


@pytest.mark.parametrize("name, equation", EVERY)
def test_the_second_solution_is_named_where_there_is_one(name, equation):
    """On y' = f every method has one, and a sentence that says what to take instead; on the others none
    has.
    """
    text = ode.available()[name].parasite(equation)
    assert (text is None) == (equation != FIRST)
    if text is not None:
        assert name in text and "take" in text and "\n" not in text


def test_methods_are_made_once_and_anew_where_their_data_change(monkeypatch):
    """Making all of them takes longer than a short run; but a composition that is added is found."""
    first = ode.available()
    first.clear()  # the caller's own dictionary
    again = ode.available()
    assert again and all(method is ode.available()[name] for name, method in again.items())
    data = compositions.available()
    mine = dataclasses.replace(data["suzuki4"], name="mine4")
    monkeypatch.setattr(compositions, "available", lambda: {**data, "mine4": mine})
    assert ode.available()["mine4"].data is mine
    monkeypatch.undo()
    assert "mine4" not in ode.available() and list(ode.available()) == sorted(again)
