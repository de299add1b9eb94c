"""Fields that are known on the run's interval alone: no method looks outside of it, and keeps its order."""

import math

import numpy as np
import pytest
import torch
from scipy.interpolate import CubicSpline

import revstep
from revstep import ode
from revstep.ode import _problem
from revstep.ode._units import make_grid
from revstep_lab.verify.ode.oracle import stored

OUT = [n for n, m in ode.available().items() if any(m.reach(e) != (0.0, 1.0) for e in m.equations)]
CASES = [(n, e) for n, m in ode.available().items() for e in m.equations]


def made(equation, force):
    start = np.ones(1) if equation == "first" else (np.ones(1), np.zeros(1))
    kind = {
        "first": lambda: ode.FirstOrder(force),
        "second": lambda: ode.SecondOrder(force),
        "separable": lambda: ode.Separable(lambda t, p: (force(t, p), p)[1], force),
    }
    return kind[equation](), start


@pytest.mark.parametrize("h", [0.02, -0.02])
@pytest.mark.parametrize("name, equation", CASES)
def test_no_method_looks_outside(name, equation, h):
    seen = []
    field, start = made(equation, lambda t, x: (seen.append(t), -x + math.sin(3 * t))[1])
    run = ode.integrate(field, start, scheme=name, h=h, steps=50, t0=0.3)
    ends = sorted((0.3, 0.3 + 50 * h))
    assert ends[0] <= min(seen) and max(seen) <= ends[1] and run.reverse().exact


@pytest.mark.parametrize("name", OUT)
def test_the_order_is_kept(name):
    """y' = y cos t + sin 3t, whose solution at 1/2 steps is compared with a run of many more."""
    field = lambda t, y: y * np.cos(t) + np.sin(3 * t)  # noqa: E731
    order = ode.available()[name].claims("first").order
    exact = ode.integrate(field, np.ones(1), scheme="kahan_li8", t1=2.0, steps=800).ys[-1, 0]
    steps = 16 if order > 6 else 24
    errors = [
        abs(ode.integrate(field, np.ones(1), scheme=name, t1=2.0, steps=n).ys[-1, 0] - exact)
        for n in (steps, 2 * steps)
    ]
    assert errors[1] <= errors[0] / 2.0 ** (order - 0.75) + 1e-13


def test_times_held_at_the_end_lose_the_order(monkeypatch):
    """The mutant: the last value inside is taken for those outside."""
    monkeypatch.setattr(_problem.Problem, "_inside", lambda self, n, m: (m,))
    monkeypatch.setattr(_problem.Problem, "limits", property(lambda self: self.bounds))
    with pytest.raises(AssertionError):
        test_the_order_is_kept("yoshida6")


@pytest.mark.parametrize("name", ["yoshida4", "kahan_li6", "blanes_moan6", "midpoint", "reversible_rk4"])
def test_a_table_on_the_interval_serves(name):
    at = np.linspace(0.0, 1.0, 401)
    table = CubicSpline(at, np.sin(3 * at), extrapolate=False)
    run = ode.integrate(lambda t, y: -y + table(t), np.ones(1), scheme=name, h=0.02, steps=50)
    assert np.isfinite(run.ys).all() and run.reverse().exact


def test_declared_intervals():
    seen = []
    force = lambda t, y: (seen.append(t), -y)[1]  # noqa: E731
    field = ode.FirstOrder(force, interval=(-math.inf, math.inf))
    ode.integrate(field, np.ones(1), scheme="yoshida4", h=0.1, steps=10)
    assert min(seen) < -0.01 and max(seen) > 1.01
    seen.clear()
    field = ode.FirstOrder(force, interval=(0.0, 5.0))
    ode.integrate(field, np.ones(1), scheme="yoshida4", h=0.1, steps=10)
    assert min(seen) >= 0.0 and max(seen) > 1.01
    with pytest.raises(revstep.ConfigError, match="beyond the field's interval"):
        ode.integrate(field, np.ones(1), scheme="yoshida4", h=0.1, steps=60)
    tight = ode.FirstOrder(lambda t, y: -y, interval=(0.0, 0.1))
    with pytest.raises(revstep.ConfigError, match="too short to extrapolate"):
        ode.integrate(tight, np.ones(1), scheme="yoshida8", h=0.1, steps=1)
    for wrong in ((1.0, 0.0), (0.0,), "ab", (0.0, math.nan)):
        with pytest.raises(revstep.ConfigError, match="interval is"):
            ode.FirstOrder(lambda t, y: -y, interval=wrong)


def test_a_c_function_declares_its_interval_too():
    from revstep.ode._functions import CFUNCTYPE

    seen = []

    @CFUNCTYPE
    def force(t, x, out, n, user):
        seen.append(t)
        out[0] = -x[0] + t

    for interval in (None, (-math.inf, math.inf)):
        seen.clear()
        field = ode.CompiledField(force, equation="first", dim=1, interval=interval)
        runs = [
            ode.integrate(field, np.ones(1), scheme="yoshida6", h=0.1, steps=10, loop=loop)
            for loop in ("compiled", "python")
        ]
        assert torch.equal(runs[0].final[0], runs[1].final[0]) and runs[0].reverse().exact
        inside = 0.0 <= min(seen) and max(seen) <= 1.0
        assert inside == (interval is None)


def test_a_run_that_goes_on_has_an_interval_of_its_own():
    seen = []
    field = lambda t, y: (seen.append(t), -y + math.cos(t))[1]  # noqa: E731
    first = ode.integrate(field, np.ones(1), scheme="yoshida6", h=0.1, steps=20)
    seen.clear()
    ode.integrate(field, start=first.final, steps=20)
    assert 2.0 - 1e-12 <= min(seen) and max(seen) <= 4.0 + 1e-12


@pytest.mark.parametrize("name", OUT)
def test_gradients_are_those_of_the_extrapolated_steps(name):
    y0 = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    h, t0 = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (0.05, 0.3))
    field = lambda t, y: torch.sin(y) * torch.cos(2 * t)  # noqa: E731
    method = ode.available()[name]
    run = ode.integrate(field, y0, scheme=name, h=h, steps=12, t0=t0, scale=1.0)
    grid = make_grid(None, 1.0, (y0, y0), shared=True)
    (expected,) = stored(field, y0, method=method, grid=grid, h=h, steps=12, t0=t0)
    assert torch.equal(run.ys[-1], expected)
    got = torch.autograd.grad(run.ys[-1].sum(), (y0, h, t0))
    want = torch.autograd.grad(expected.sum(), (y0, h, t0))
    for a, b in zip(got, want):
        assert (a - b).abs().max() <= 2.0**-40 * max(1.0, float(b.abs().max()))
