"""A run that goes on from ``solution.final``: two halves are the whole, bit for bit."""

import copy
import pickle

import numpy as np
import pytest
import torch

import revstep
from revstep import ode
from revstep.errors import ConfigError

CASES = [(name, eq) for name, m in ode.available().items() for eq in m.equations if m.period is not None]


def arithmetic(equation):
    f = lambda t, x: x * (0.25 - x) + t  # noqa: E731
    g = lambda t, x: -x - t * x  # noqa: E731
    return {"first": ode.FirstOrder(f), "second": ode.SecondOrder(g), "separable": ode.Separable(f, g)}[
        equation
    ]


def start_of(equation, shape=(3,)):
    q = np.linspace(0.1, 0.7, int(np.prod(shape))).reshape(shape)
    return q if equation == "first" else (q, 0.5 * q)


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("name, equation", CASES)
def test_two_halves_are_the_whole(name, equation):
    fixed = {"scheme": name, "h": 1 / 32, "t0": 0.5, "scale": 4.0}
    field, y0 = arithmetic(equation), start_of(equation)
    field.interval = (-9.0, 9.0)  # so that neither end of a half is one of the field's
    whole, before, after = halves_with(field, y0, 5, 8, fixed)
    assert same(whole.final, after.final) and np.array_equal(whole.ys[-1], after.ys[-1])
    assert after.ts[-1] == whole.ts[-1] and after.stats.method == whole.stats.method
    back = after.reverse()
    assert back.exact and same(back.final, before.final)


def halves_with(field, y0, first, second, fixed):
    whole = ode.integrate(field, y0, steps=first + second, **fixed)
    before = ode.integrate(field, y0, steps=first, **fixed)
    return whole, before, ode.integrate(field, None, start=before.final, steps=second)


@pytest.mark.parametrize("loop", ["python", "compiled"])
@pytest.mark.parametrize("name", ["kahan_li6", "verlet", "leapfrog", "hamiltonian"])
def test_in_both_loops_and_through_pickle(name, loop):
    field = ode.fields.Kepler(equation="second")
    y0 = (np.array([[0.7, 0.0], [0.9, 0.1]]), np.array([[0.0, 1.3], [0.0, 1.1]]))
    fixed = {
        "scheme": name,
        "h": 1 / 64,
        "loop": loop,
        "scale": (2.0, np.array([2.0, 4.0])) if name != "leapfrog" else 2.0,
    }
    whole, before, _ = halves_with(field, y0, 100, 77, fixed)
    for copied in (before.final, pickle.loads(pickle.dumps(before.final)), copy.deepcopy(before.final)):
        after = ode.integrate(field, None, start=copied, steps=77, loop=loop)
        assert after.stats.loop == loop and same(whole.final, after.final) and after.reverse().exact


def test_from_the_values_alone_it_does_not_go_on():
    """The mutant: read-out floats instead of the slots."""
    field, y0 = arithmetic("first"), start_of("first")
    fixed = {"scheme": "midpoint", "h": 1 / 32, "scale": 4.0}
    whole, before, _ = halves_with(field, y0, 5, 8, fixed)
    again = ode.integrate(field, before.ys[-1], t0=before.ts[-1], steps=8, **fixed)
    assert not same(whole.final, again.final)


@pytest.mark.parametrize(
    "state", [revstep.FixedPoint(64, 40), revstep.FixedPoint(32, 24), revstep.Float(torch.float64)], ids=str
)
def test_other_formats_complex_states_and_gradients(state):
    y0 = torch.tensor([0.5 + 0.1j, -0.25j], dtype=torch.complex128)
    w = torch.tensor(0.75, dtype=torch.float64, requires_grad=True)
    field = lambda t, y, w: 1j * w * y  # noqa: E731
    fixed = {"scheme": "reversible_rk4", "h": 1 / 16, "args": (w,), "state": state}
    whole = ode.integrate(field, y0, steps=12, **fixed)
    before = ode.integrate(field, y0, steps=4, **fixed, scale=None)
    after = ode.integrate(field, None, start=before.final, steps=8, args=(w,))
    assert after.ys.is_complex() and (after.ys[-1] - whole.ys[-1]).abs().max() < 1e-5
    (grad,) = torch.autograd.grad(after.ys[-1].abs().sum() + after.ys[-1].real.sum(), w)
    assert torch.isfinite(grad) and grad != 0


WRONG = {
    "another h": (dict(h=0.5), "leave h out"),
    "another time": (dict(t0=3.0), "leave t0 out"),
    "another method": (dict(scheme="verlet"), "leave scheme out"),
    "another format": (dict(state=revstep.FixedPoint(64, 30)), "leave state out"),
    "a scale": (dict(scale=1.0), "leave scale out"),
    "another shape": (dict(y0=np.zeros(5)), "leave y0 out"),
    "no end": (dict(steps=None), "how many steps"),
    "a plain tuple": (dict(start=(torch.zeros(3), torch.zeros(3))), "solution.final as it is"),
    "another equation": (dict(field=ode.SecondOrder(lambda t, q: -q)), "needs a pair"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_use_is_refused(what):
    options, message = WRONG[what]
    before = ode.integrate(arithmetic("first"), start_of("first"), scheme="kahan_li6", h=1 / 32, steps=3)
    given = {"field": arithmetic("first"), "y0": None, "start": before.final, "steps": 2, **options}
    with pytest.raises(ConfigError, match=message):
        ode.integrate(given.pop("field"), given.pop("y0"), **given)
