"""What ``integrate`` refuses, and what it says of values that do not fit."""

import numpy as np
import pytest
import torch

import revstep
from revstep import ode

pytestmark = pytest.mark.filterwarnings("error")

ONE = np.array([1.0])
DECAY = lambda t, y: -y  # noqa: E731
REFUSED = {
    "unknown method": (dict(scheme="rk45"), "unknown method 'rk45', expected one of"),
    "method of another equation": (
        dict(scheme="leapfrog"),
        r"leapfrog integrates q'' = f\(t, q\); got a field of y' = f\(t, y\)",
    ),
    "a scheme with another h": (
        dict(scheme=revstep.Midpoint(h=0.25)),
        "has h = 0.25, but integrate was given h = 0.1",
    ),
    "no scheme": (dict(scheme=3), "expected a name, a Scheme"),
    "a scheme of samples": (dict(scheme=revstep.BDIA()), "for each sample of a batch"),
    "h of 0": (dict(h=0.0), "h is 0"),
    "h not finite": (dict(h=float("nan")), "h is nan"),
    "h no number": (dict(h="1"), "h is '1'"),
    "negative steps": (dict(steps=-1), "steps is -1"),
    "fractional steps": (dict(steps=1.5), "steps is 1.5"),
    "save_every 0": (dict(save_every=0), "save_every is 0"),
    "two kinds of times": (dict(save_every=1, t_eval=[0.1]), "both save_every and t_eval"),
    "a time outside": (dict(t_eval=[2.0]), "t_eval has 2.0, expected times from 0.0 to 1.0"),
    "unknown start": (dict(start="rk4"), "start is 'rk4', midpoint knows 'repeat', 'euler'"),
    "start of a one-step method": (dict(scheme="yoshida4", start="euler"), "yoshida4 takes none"),
    "unknown loop": (dict(loop="fast"), "loop is 'fast'"),
    "compiled loop of a Python function": (dict(loop="compiled"), "the field is a Python function"),
    "no state format": (dict(state="fixed"), "state is 'fixed', expected revstep.FixedPoint"),
    "hidden overflow": (
        dict(state=revstep.FixedPoint(64, on_nonfinite="propagate")),
        "on_nonfinite='propagate' is for training",
    ),
    "scale no power of two": (dict(scale=3.0), "expected powers of two"),
    "scale of another shape": (dict(scale=np.ones(4)), "does not broadcast"),
    "two scales for one quantity": (dict(scale=(1.0, 2.0), scheme="blend"), "same quantity in both slots"),
}


@pytest.mark.parametrize("options, message", REFUSED.values(), ids=REFUSED)
def test_refused(options, message):
    with pytest.raises(revstep.ConfigError, match=message):
        ode.integrate(DECAY, ONE, **{"scheme": "midpoint", "h": 0.1, "steps": 10, **options})


@pytest.mark.parametrize(
    "field, y0, message",
    [
        (7, ONE, "field is int"),
        ((DECAY, DECAY), ONE, r"needs a pair \(q0, p0\)"),
        (ode.SecondOrder(DECAY), ONE, r"needs a pair \(q0, v0\)"),
        (ode.FirstOrder(DECAY), (ONE, ONE), "needs one array"),
        (DECAY, (ONE, np.ones(2)), r"parts of y0 are \(1,\)"),
        (DECAY, np.array([np.inf]), "not finite"),
        (
            lambda t, y: y[:0],
            ONE,
            r"the field returned \(0,\), expected a tensor of the state's shape \(1,\)",
        ),
        ((DECAY, 3), (ONE, ONE), "field is tuple"),
    ],
)
def test_refused_fields(field, y0, message):
    scheme = "verlet" if isinstance(y0, tuple) or isinstance(field, tuple) else "midpoint"
    with pytest.raises(revstep.ConfigError, match=message):
        ode.integrate(field, y0, scheme=scheme, h=0.1, steps=2)


def test_growth_beyond_the_range_names_the_step():
    with pytest.raises(revstep.StateOverflowError, match="step") as caught:
        ode.integrate(lambda t, y: 3 * y, ONE, scheme="midpoint", h=0.5, steps=100)
    assert 0 < caught.value.layer < 20 and caught.value.largest > caught.value.limit


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_flagged(value):
    with pytest.raises(revstep.StateOverflowError, match="step 3"):
        ode.integrate(lambda t, y: y * (value if t > 0.25 else 1.0), ONE, scheme="midpoint", h=0.1, steps=10)


def test_a_field_must_not_write_to_its_argument():
    with pytest.raises(revstep.UnsupportedError, match="in place"):
        ode.integrate(lambda t, y: y.mul_(-1), torch.ones(2), scheme="midpoint", h=0.1, steps=2)

    def wrong(t, y):
        y *= 2
        return y

    with pytest.raises(ValueError, match="read-only"):
        ode.integrate(wrong, ONE, scheme="midpoint", h=0.1, steps=2)


def test_a_reversed_solution_is_not_reversed_again():
    run = ode.integrate(DECAY, ONE, scheme="midpoint", h=0.1, steps=2)
    with pytest.raises(revstep.ConfigError, match="itself a reversed one"):
        run.reverse().reverse()
