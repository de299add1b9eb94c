"""Times: any two of h, steps and the end; times to return as they were asked for; the way back at the same
times.
"""

import numpy as np
import pytest
import torch

import revstep
from revstep import ode
from revstep.ode import _times

DECAY = lambda t, y: -y  # noqa: E731


def run(**options):
    return ode.integrate(DECAY, np.ones(1), scheme="kahan_li6", **options)


@pytest.mark.parametrize(
    "options",
    [
        {"h": 0.1, "steps": 10},
        {"h": 0.1, "t1": 1.0},
        {"steps": 10, "t1": 1.0},
        {"h": 0.1, "t_span": (0.0, 1.0)},
        {"steps": np.int64(10), "t_span": (0, 1)},
        {"h": np.array(0.1), "steps": 10, "t1": 1.0},
        {"h": torch.tensor(0.1, dtype=torch.float64), "steps": 10},
    ],
)
def test_two_of_three_say_it(options):
    found = run(**options)
    assert (
        found.stats.steps == 10 and found.ts[-1] == pytest.approx(1.0) and found.stats.h == pytest.approx(0.1)
    )


@pytest.mark.parametrize(
    "options, message",
    [
        ({"h": 0.1}, "expected two of h, steps and the end"),
        ({"steps": 3}, "expected two of h, steps and the end"),
        ({"t1": 1.0}, "neither h nor steps"),
        ({"h": 0.3, "t1": 1.0}, "does not divide the span of 1.0: give steps instead; steps=4"),
        ({"h": -0.1, "t1": 1.0}, "leads away from t1"),
        ({"h": 0.1, "steps": 3, "t1": 1.0}, "leave one out"),
        ({"h": 0.0, "steps": 3}, "h is 0"),
        ({"h": 0.1, "steps": 2.5}, "steps is 2.5"),
        ({"h": 0.1, "steps": True}, "steps is True"),
        ({"h": 0.1, "steps": 3, "t0": 1.0, "t_span": (0, 1)}, "t_span is given beside"),
        ({"h": 0.1, "t_span": 3.0}, "expected a pair"),
        ({"h": 0.1, "steps": 3, "t_eval": 0.1}, "expected a list of times"),
        ({"h": 0.1, "steps": 3, "t_eval": ["a"]}, "expected a list of times"),
        ({"h": 0.1, "steps": 3, "t_eval": [0.0, 0.5]}, "the interval of the integration"),
        ({"h": 0.1, "steps": 3, "t_eval": [np.nan]}, "the interval of the integration"),
        ({"h": 0.1, "steps": 3, "progress": 3}, "progress is 3"),
    ],
)
def test_spans_that_do_not_fit_are_refused(options, message):
    with pytest.raises(revstep.ConfigError, match=message):
        run(**options)


@pytest.mark.parametrize("t0", [0.0, 2451545.0, 1.7e9, -12345.678])
def test_the_solutions_own_times_return_its_bits(t0):
    whole = run(h=0.01, steps=40, t0=t0, save_every=1)
    asked = run(h=0.01, steps=40, t0=t0, t_eval=whole.ts)
    assert np.array_equal(asked.ys, whole.ys) and np.array_equal(asked.ts, whole.ts)
    assert np.array_equal(run(h=0.01, steps=40, save_every=1).ys, whole.ys)  # the field does not depend on t


def test_with_a_fixed_snap_they_are_not(monkeypatch):
    """The mutant, as it was: 1e-9 of a step, which the rounding of a Julian date exceeds."""
    monkeypatch.setattr(_times, "EPS", 0.0)
    whole = run(h=0.01, steps=40, t0=1.7e9, save_every=1)
    with pytest.raises(revstep.ConfigError, match="the interval of the integration"):
        _times.brackets(whole.ts.tolist(), 1.7e9, 0.01, 0, 40)
    assert any(theta for _, theta in _times.brackets(whole.ts.tolist()[:-1], 1.7e9, 0.01, 0, 40))


@pytest.mark.parametrize("h", [0.1, -0.1])
def test_times_come_back_as_asked_and_fall_on_the_way_back(h):
    asked = [10 * h, 0.0, 5 * h, 5 * h, 2.5 * h]
    found = run(h=h, steps=10, t_eval=asked)
    assert found.ts.tolist() == asked and np.allclose(found.ys[:, 0], np.exp(-np.array(asked)), rtol=1e-6)
    back = found.reverse()
    steps = np.diff(back.ts) * np.sign(h)
    assert back.exact and (steps < 0).all() and sorted(back.ts) == sorted(set(asked))
    assert np.allclose(back.ys[:, 0], np.exp(-back.ts), rtol=1e-6)


def test_no_times_are_no_rows():
    found = run(h=0.1, steps=10, t_eval=[])
    assert found.ys.shape == (0, 1) and found.reverse().ys.shape == (0, 1) and found.reverse().exact
    assert "0 saved" in repr(found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["verlet", "reversible_rk4", "midpoint"])
def test_the_clock_does_not_have_the_states_dtype(name, dtype):
    seen = []

    def field(t, y):
        seen.append((t.dtype, float(t)))
        return torch.zeros_like(y)

    ode.integrate(field, torch.ones(1, dtype=dtype), scheme=name, h=1.0, steps=20, t0=1.7e9)
    assert {d for d, _ in seen} == {torch.float64}
    assert {t for _, t in seen} >= {1.7e9 + n for n in range(20)}
