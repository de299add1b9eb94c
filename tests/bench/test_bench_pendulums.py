"""The benchmark's pendulums: the same steps on both sides, counted per pendulum, and heyoka beside them."""

import sys

import numpy as np
import pytest

from revstep_lab.bench import pendulums
from revstep_lab.bench.runner import Measurement


@pytest.mark.parametrize("ours, order, theirs, their_order", pendulums.PAIRS)
def test_both_sides_take_steps_of_one_size_to_one_end(ours, order, theirs, their_order):
    """scipy accepts every step of h (the last may be split by rounding of t), and evaluates as often as its
    method does.
    """
    angles, steps = pendulums.start(4), 20
    found = pendulums._solve(theirs, angles, steps, whole=True)
    assert len(found.t) - 1 in (steps, steps + 1) and np.allclose(
        np.diff(found.t)[:-1], pendulums.H, rtol=1e-12, atol=0
    )
    stages = {"RK23": 3, "RK45": 6, "DOP853": 12}[theirs]
    assert found.nfev == 1 + stages * (len(found.t) - 1)  # none was rejected
    exact = pendulums.reference(angles, steps)
    mine = pendulums._ours(ours, "exact", angles, steps)
    assert mine.stats.steps == steps and mine.stats.loop == "compiled"
    # Errors of order h**k, constants below 1 for these angles.
    assert np.abs(mine.ys[-1][:, 0] - exact).max() < pendulums.H**order + 1e-14 * steps
    assert np.abs(found.y[:4, -1] - exact).max() < pendulums.H ** min(their_order, order + 1) + 1e-14 * steps


def test_time_is_counted_per_pendulum(monkeypatch):
    """One second a call: the joint call has 4 pendulums in it, one by one only the sample."""
    monkeypatch.setitem(sys.modules, "heyoka", None)
    monkeypatch.setattr(
        pendulums,
        "measure",
        lambda variants, rounds, warmup, clock: [
            Measurement(n, 1.0, 1.0, 1.0, {o: 1.0 for o in variants}) for n in variants
        ],
    )
    part = pendulums.run(pendulums=4, steps=5, sample=2, rounds=1)
    rows = {row["name"]: row for row in part["rows"]}
    steps = rows["solve_ivp RK23, joint"]["steps"]
    assert rows["revstep verlet, exact"]["p50"] == 1 / 20
    assert rows["solve_ivp RK23, joint"]["p50"] == 1 / (4 * steps) and rows["solve_ivp RK23, one by one"][
        "p50"
    ] == 1 / (2 * steps)
    goals = {g["what"]: g["value"] for g in part["goals"]}
    assert goals[
        "time a step and pendulum, solve_ivp RK23 (order 3), one by one / revstep verlet (order 2), exact"
    ] == pytest.approx(20 / (2 * steps))
    assert len(goals) == 12
    bounds = {
        (order, state): g["goal"]
        for g in part["goals"]
        for order in (2, 4, 8)
        for state in pendulums.STATES
        if ", joint / " in g["what"] and f"(order {order}), {state}" in g["what"]
    }
    assert bounds == {
        (2, "float64"): 20, (4, "float64"): 10, (8, "float64"): 10,
        (2, "exact"): 10, (4, "exact"): 5, (8, "exact"): 5,
    }  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
def test_heyoka_integrates_the_same_pendulums(threads):
    """At a tolerance of 1e-12 every pendulum arrives where DOP853's does; a number that no register's lanes
    divide, so that the last batch is filled up. A loose tolerance has a lower order and is further away.
    """
    heyoka = pytest.importorskip("heyoka")
    angles = pendulums.start(11)
    exact = pendulums.reference(angles, 100)
    # A unit of time with a Lipschitz constant of 1: errors of a step grow by e, and there are about ten.
    tight, loose = (pendulums.Taylor(heyoka, tol, threads) for tol in (1e-12, 1e-3))
    found, taken = tight(angles, 1.0)
    assert found.shape == (11,) and np.abs(found - exact).max() < 1e-11 and 1 < taken < 20
    assert loose.order < tight.order and np.abs(loose(angles, 1.0)[0] - exact).max() > 1e-9
