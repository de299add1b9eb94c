"""A value leaves its format in an integration: advice is followed literally and passes the failing step."""

import functools
import re

import numpy as np
import pytest
import torch

from revstep import FixedPoint, Float, ode
from revstep.errors import StateOverflowError
from revstep.ode import _overflow

ONE = r"2\.0\*\*-?\d+|\[[^]]*\]"
SCALE = re.compile(rf"pass scale=(\([^)]*\)|{ONE})")
STATE = re.compile(r"use FixedPoint\(bits=(\d+), frac_bits=(\d+)\)")
KEPT = re.compile(rf"together with scale=(\([^)]*\)|{ONE})")


def powers(text):
    """The value of ``2.0**k``, of a list of them, or of a pair of either."""
    return eval(text, {"__builtins__": {}})  # the message says what to write


def failing(run):
    with pytest.raises(StateOverflowError) as caught, np.errstate(all="ignore"):
        run()
    return caught.value


def after(run, step, **options):
    """The step at which the run with these options fails, None if it does not."""
    try:
        with np.errstate(all="ignore"):
            run(**options)
    except StateOverflowError as error:
        return error.layer
    return None


def pair(q, v):
    return np.array(q), np.array(v)


def orbit(distance, unit=1.0, time=1.0):
    """A circular orbit that drifts: the whole system moves off at a tenth of its speed."""
    speed = distance**-0.5
    q, p = np.array([distance, 0.0]) * unit, np.array([0.02 * speed, speed]) * unit / time
    return ode.fields.Kepler(mu=unit**3 / time**2), (q, p)


GROW = ode.fields.Linear([[3.0]])
STIFF = ode.fields.Linear([[-40.0, 1.0], [0.0, -1.0]])
SPRING = (lambda t, p: p, lambda t, q: 3 * q)

RUNS = {
    "growth, midpoint": (GROW, np.array([1.0]), "midpoint", 0.5),
    "growth in metres": (GROW, np.array([1e11]), "midpoint", 0.5),
    "growth of something tiny": (GROW, np.array([1e-20]), "midpoint", 0.5),
    "growth, two scales of one quantity": (GROW, np.array([3.0]), "blend", 0.5),
    "a batch that fails together": (GROW, np.array([[1.0], [-1.5], [1.9]]), "midpoint", 0.5),
    "unstable": (STIFF, np.array([1.0, 1.0]), "midpoint", 0.5),
    "both slots in one step": (SPRING, pair([1.0, 0.0], [1e-3, 1.0]), "verlet", 8.0),
    "both slots, higher order": (SPRING, pair([1.0, 0.0], [1e-3, 1.0]), "kahan_li6", 8.0),
    "leapfrog": (ode.SecondOrder(lambda t, q: 40 * q), pair([1.0], [1.0]), "leapfrog", 0.5),
    "a close approach": (ode.fields.Kepler(), pair([1e-3, 0.0], [0.0, 1e-3]), "verlet", 1.0),
    "an orbit left by too large a step, km": (*orbit(1.0, 1.5e8, 5e6), "verlet", 2.5e6 * 8),
}
LOOPS = [(name, "python") for name in RUNS]
LOOPS += [(name, "compiled") for name, run in RUNS.items() if hasattr(run[0], "compiled")]


def runner(name, loop, steps=400, **fixed):
    field, y0, scheme, h = RUNS[name]
    if name.startswith("an orbit left"):  # units of the start alone: those that are chosen see it leave
        fixed = {"scale": (2.0**28, 2.0**5), **fixed}
    fixed = {"scheme": scheme, "h": h, "steps": steps, "loop": loop, **fixed}
    return lambda **options: ode.integrate(field, y0, **{**fixed, **options})


@pytest.mark.parametrize("name, loop", LOOPS, ids=[f"{n}, {k}" for n, k in LOOPS])
def test_the_advised_scale_gets_past_the_step(name, loop):
    run = runner(name, loop)
    error = failing(run)
    passed = after(run, error.layer, scale=powers(SCALE.search(str(error))[1]))
    assert passed is None or passed > error.layer


@pytest.mark.parametrize("name, loop", LOOPS, ids=[f"{n}, {k}" for n, k in LOOPS])
def test_the_advised_format_gets_past_the_step(name, loop):
    """With the scale that is named beside it, if there is one; a message without a format names a scale."""
    run = runner(name, loop)
    error = failing(run)
    named, kept = STATE.search(str(error)), KEPT.search(str(error))
    if named is None:
        assert SCALE.search(str(error))
        return
    state = FixedPoint(int(named[1]), int(named[2]))
    passed = after(run, error.layer, state=state, **({"scale": powers(kept[1])} if kept else {}))
    assert passed is None or passed > error.layer


STATES = [FixedPoint(64), FixedPoint(64, 61), FixedPoint(64, 0), FixedPoint(32, 20)]


@pytest.mark.parametrize("loop", ["python", "compiled"])
@pytest.mark.parametrize("state", STATES, ids=str)
def test_a_start_that_does_not_fit(state, loop):
    """Both ways out, for starts just above the range and far above it."""
    if state.bits == 32 and loop == "compiled":
        pytest.skip("the compiled loop takes 64-bit states")
    for factor in (1.01, 3.0, 1e6, 1e30):

        def run(factor=factor, **options):
            ode.integrate(
                GROW,
                np.array([0.5, 1.0])[1:] * factor * state.limit,
                scheme="midpoint",
                h=1e-3,
                steps=1,
                loop=loop,
                **{"state": state, "scale": 1.0, **options},
            )

        error = failing(run)
        assert error.layer == 0 and "the start does not fit" in str(error) and "smaller h" not in str(error)
        assert after(run, 0, scale=powers(SCALE.search(str(error))[1])) is None
        named = STATE.search(str(error))
        if named is not None:
            assert after(run, 0, state=FixedPoint(int(named[1]), int(named[2])), scale=1.0) is None
        else:
            assert error.advised is None


def test_scales_of_components_are_multiplied():
    scale = np.array([1.0, 2.0**20])
    run = runner("unstable", "compiled", state=FixedPoint(64, 40))
    error = failing(lambda: run(scale=scale))
    assert "pass scale=" in str(error) and "[2.0**" in str(error)
    assert all((torch.as_tensor(s) >= torch.from_numpy(scale)).all() for s in error.scale)
    passed = after(run, error.layer, scale=error.scale)
    assert passed is None or passed > error.layer
    named = STATE.search(str(error))
    passed = after(run, error.layer, scale=scale, state=FixedPoint(int(named[1]), int(named[2])))
    assert "together with scale=[2.0**0, 2.0**20]" in str(error) and (passed is None or passed > error.layer)


def test_without_the_rest_of_the_step_the_advice_fails_in_it(monkeypatch):
    """The mutant: only the value that failed is looked at. The other slot then fails in the same step."""
    run = runner("a close approach", "python")
    original = _overflow._Rest.take
    monkeypatch.setattr(_overflow._Rest, "take", lambda self, micros: original(self, micros[:1]))
    error = failing(run)
    assert after(run, error.layer, scale=powers(SCALE.search(str(error))[1])) == error.layer


def test_without_the_scale_beside_it_the_format_fails_at_the_start():
    """The mutant, as it was: the format in units of 1. Alone it keeps the units that were chosen."""
    run = runner("growth in metres", "compiled")
    error = failing(run)
    named = STATE.search(str(error))
    state = FixedPoint(int(named[1]), int(named[2]))
    assert after(run, 0, state=state, scale=1.0) == 0
    passed = after(run, error.layer, state=state)
    assert KEPT.search(str(error)) is None and (passed is None or passed > error.layer)


@pytest.mark.parametrize("loop", ["python", "compiled"])
def test_the_component_and_the_slot_are_named(loop):
    for index in np.ndindex(2, 2, 3):
        q, p = np.zeros((2, 2, 3)), np.zeros((2, 2, 3))
        p[index] = 1.0
        field = ode.fields.Harmonic() if loop == "compiled" else (lambda t, p: p, lambda t, q: -q)
        options = {"scheme": "verlet", "h": 8.0, "steps": 200, "loop": loop}
        error = failing(functools.partial(ode.integrate, field, (q, p), **options))
        assert f"component {index} of " in str(error) and ("of q:" in str(error) or "of p:" in str(error))


@pytest.mark.parametrize("state", [None, Float(torch.float64)], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_field_is_blamed_where_it_gave_the_value(value, state):
    def field(t, y):
        out = -y
        out[2] = value if t > 0.4 else 0.0
        return out

    options = {"scheme": "midpoint", "h": 0.125, "steps": 50, "state": state}
    error = failing(lambda: ode.integrate(field, np.ones(4), **options))
    assert f"the field returned {value} for that component" in str(error)
    assert error.layer == 4 and "t = 0.5, component (2,) of y: " in str(error)
    assert "use FixedPoint" not in str(error) and error.advised is None


def test_a_field_that_raises_beyond_its_domain_does_not_hide_the_error():
    def field(t, q):
        if np.abs(q).max() > 1e3:
            raise ValueError("out of the domain")
        return 3e4 * q

    start, second = pair([1.0, 0.1], [0.0, 0.0]), ode.SecondOrder(field)
    error = failing(lambda: ode.integrate(second, start, scheme="yoshida6", h=1.0, steps=20, scale=1.0))
    assert "component (0,)" in str(error) and "smaller h" in str(error)


def test_the_way_back_speaks_of_the_way_back():
    """A field that is another one on the way back: no advice on units, which would not help."""
    now = [1.0]
    run = ode.integrate(lambda t, y: now[0] * y, np.array([1.0, 2.0]), scheme="midpoint", h=0.5, steps=10)
    now[0] = 1e6
    error = failing(run.reverse)
    assert "on the way back" in str(error) and "the field gave other values than before" in str(error)
    assert "scale=" not in str(error) and "use FixedPoint" not in str(error) and error.advised is None


def test_statistics_that_are_read_later_have_enough_advice_too(monkeypatch):
    """On devices statistics are read many micro-steps together, when the failing one's slots are gone."""
    from revstep.ode import _loop

    init = _loop.Walker.__init__

    def on_a_device(self, *args, **kwargs):
        init(self, *args, **kwargs)
        self._at_once = False

    monkeypatch.setattr(_loop.Walker, "__init__", on_a_device)
    for name in ("growth, midpoint", "growth in metres", "leapfrog", "unstable"):
        run = runner(name, "python")
        error = failing(run)
        passed = after(run, error.layer, scale=powers(SCALE.search(str(error))[1]))
        assert "component" not in str(error) and (passed is None or passed > error.layer)


def test_gradients_name_the_step_and_the_component():
    y = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64, requires_grad=True)
    error = failing(lambda: ode.integrate(lambda t, y: 3 * y, y, scheme="midpoint", h=0.5, steps=100))
    assert re.search(r"^step \d+, t = .*component \(\d,\) of y: ", str(error))
