"""The unit of each component, chosen from its start and from how far the field moves it.

Each problem is run in units of many sizes: what comes out, in those units, does not depend on them.
"""

import math
import warnings

import numpy as np
import pytest
import torch

from revstep import FixedPoint, ode
from revstep.errors import ResolutionError, ResolutionWarning, StateOverflowError
from revstep.ode import _units, _watch

UNITS = [1e-30, 1e-9, 1.0, 1e12, 1e30]
#: Units of length, and rates in radians a unit of time.
SIZES = [(1e-9, 1e-12), (1e12, 1e15), (1e-20, 1.0)]


@pytest.fixture(autouse=True)
def no_false_alarms():
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResolutionWarning)
        yield


def oscillator(equation, unit, rate, turn, method, steps=40, **options):
    """``(relative error, solution)`` of an oscillator that starts at the phase ``turn`` and makes some of a
    turn.

    The error is that of each component, in units of its amplitude.
    """
    h = 1.0 / (64 * rate)
    end = turn + 1.0 / 64 * steps
    q, v = unit * math.sin(turn), unit * rate * math.cos(turn)
    if equation == "first":
        field, y0 = (lambda t, y: np.array([y[1], -rate * rate * y[0]])), np.array([q, v])
    elif equation == "second":
        field, y0 = (lambda t, x: -rate * rate * x), (np.array([q]), np.array([v]))
    else:
        mass = 1e-27
        field, y0 = (
            (lambda t, p: p / mass, lambda t, x: -mass * rate * rate * x),
            (np.array([q]), np.array([mass * v])),
        )
        v *= mass
    found = ode.integrate(field, y0, scheme=method, h=h, steps=steps, **options)
    last = found.ys[-1] if found.second is None else np.concatenate([found.ys[-1], found.second[-1]])
    size = np.array([unit, unit * rate * (1e-27 if equation == "separable" else 1.0)])
    return float(np.abs(last / size - [math.sin(end), math.cos(end)]).max()), found


def good_scale(equation):
    """For a unit and a rate of 1; momenta have the mass in them."""
    return (1.0, 2.0**-89) if equation == "separable" else 1.0


METHODS = [(name, eq) for name, m in ode.available().items() for eq in m.equations]


@pytest.mark.parametrize("method, equation", METHODS)
def test_the_result_does_not_depend_on_the_units(method, equation):
    """Starts of zero in either part, and one that is zero but for rounding: sin(pi) is 1.2e-16.

    The errors in all units are those of units of 1, but for roundings: 40 steps on a grid of 25 bits of a
    step or better, and what the factor 1/rate makes of the floats.
    """
    for turn in (0.0, math.pi, math.pi / 2):
        expected, _ = oscillator(equation, 1.0, 1.0, turn, method, scale=good_scale(equation))
        for unit, rate in SIZES:
            error, found = oscillator(equation, unit, rate, turn, method)
            assert abs(error - expected) <= 1e-9 + 1e-3 * expected, (unit, rate, turn)
        assert found.reverse().exact


def overflows(run):
    try:
        run()
    except StateOverflowError:
        return True
    return False


@pytest.mark.parametrize("equation", ["first", "second", "separable"])
def test_a_unit_of_the_start_alone_overflows(equation, monkeypatch):
    """The mutant: a start that is rounding (sin(pi)) says what the size of its component is."""
    run = lambda: oscillator(equation, 1e-9, 1e-12, math.pi, "kahan_li6")  # noqa: E731
    monkeypatch.setattr(_units, "TRIES", 0)
    assert not overflows(run)
    monkeypatch.setattr(_units, "OUTRAN", math.inf)
    assert overflows(run)


@pytest.mark.parametrize("q0", [0.0, 1e-300, 1e-20, math.sin(math.pi)])
@pytest.mark.parametrize("h", [1e-6, 1e-3])
def test_short_steps_from_a_start_that_says_nothing(q0, h):
    found = ode.integrate(lambda t, q: -q, (np.array([q0]), np.ones(1)), scheme="verlet", h=h, steps=300)
    assert abs(found.ys[-1, 0] - math.sin(300 * h)) <= 1e-6 * 300 * h


def test_everything_starts_at_zero():
    for unit in UNITS:
        for method in ("kahan_li6", "reversible_rk4"):
            first = method == "reversible_rk4"
            zero = np.zeros(1) if first else (np.zeros(1), np.zeros(1))
            field = (lambda t, y, u=unit: u - y) if first else (lambda t, q, u=unit: u - q)
            found = ode.integrate(field, zero, scheme=method, h=1 / 32, steps=64)
            expected = 1 - math.exp(-2) if first else 1 - math.cos(2)
            assert found.ys[-1, 0] == pytest.approx(unit * expected, rel=1e-6)


def test_a_field_of_zero_from_zero_stays_there():
    for zero in (np.zeros(2), (np.zeros(2), np.zeros(2))):
        found = ode.integrate(lambda t, y: 0 * y, zero, h=0.1, steps=10)
        assert not found.ys.any() and found.stats.scales == (1.0, 1.0)


# ---- other equations
# ------------------------------------------------------------------------------------------


def epidemic(t, y):
    return np.array([-0.5 * y[0] * y[1], 0.5 * y[0] * y[1] - 0.1 * y[1], 0.1 * y[1]])


def lorenz(t, y):
    return np.array([10 * (y[1] - y[0]), y[0] * (28 - y[2]) - y[1], y[0] * y[1] - 8 / 3 * y[2]])


#: Bounded problems that grow far beyond their starts: field, start, h, steps.
BOUNDED = {
    "an epidemic of one in a billion": (epidemic, np.array([1 - 1e-9, 1e-9, 0.0]), 0.25, 600),
    "logistic growth": (lambda t, y: y * (1 - y), np.array([1e-3]), 0.125, 160),
    "Lorenz": (lorenz, np.ones(3), 0.01, 1500),
    "a pendulum that falls from the top": (np.sin, (np.array([1e-3]), np.zeros(1)), 0.1, 600),
    "a pendulum that starts down fast": (lambda q: -np.sin(q), (np.zeros(1), np.array([1.99])), 0.1, 600),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_problems_do_not_overflow(name):
    field, y0, h, steps = BOUNDED[name]
    f = field if not isinstance(y0, tuple) else (lambda t, q: field(q))
    found = ode.integrate(f, y0, h=h, steps=steps)
    assert np.isfinite(found.ys).all() and found.stats.headroom > 1.5


def test_without_the_pilot_they_do(monkeypatch):
    monkeypatch.setattr(_units, "_settled", lambda *_: True)
    field, y0, h, steps = BOUNDED["logistic growth"]
    assert overflows(lambda: ode.integrate(field, y0, h=h, steps=steps))


def test_components_decades_apart():
    """Beside one of 1e3 a component of 1e-13 keeps all of its digits."""
    y0 = np.array([1e3, 1e-13, 1e-30, 1e20])
    for method in ("reversible_rk4", "kahan_li6"):
        found = ode.integrate(lambda t, y: -y, y0, scheme=method, h=1 / 64, steps=64)
        assert found.ys[-1] / y0 == pytest.approx(np.full(4, math.exp(-1)), rel=1e-8)
    with pytest.raises(ResolutionError, match="never moved"):  # one unit for all of them is the fault
        ode.integrate(lambda t, y: -y, y0, scheme="kahan_li6", h=1 / 64, steps=64, scale=2.0**67)


@pytest.mark.parametrize("loop", ["python", "compiled"])
def test_members_decades_apart(loop):
    sizes = np.logspace(-20, 20, 5)[:, None] * np.ones((5, 2))
    field = ode.fields.Harmonic(1.0, equation="second")
    found = ode.integrate(field, (sizes, 0 * sizes), scheme="kahan_li6", h=1 / 16, steps=32, loop=loop)
    assert found.ys[-1] / sizes == pytest.approx(np.full((5, 2), math.cos(2.0)), rel=1e-8)
    assert found.reverse().exact and found.stats.loop == loop
    with pytest.raises(ResolutionError, match="never moved"):  # one unit for all of them is the fault
        ode.integrate(
            field, (sizes, 0 * sizes), scheme="kahan_li6", h=1 / 16, steps=32, loop=loop, scale=2.0**67
        )


def test_real_and_imaginary_parts_share_a_unit():
    y0 = torch.tensor([1.0 + 1e-12j, 1e-9 + 0j], dtype=torch.complex128)
    found = ode.integrate(lambda t, y: 1j * y, y0, h=1 / 32, steps=64)
    assert ((found.ys[-1] / y0) - np.exp(2j)).abs().max() < 1e-6
    for scale in found.stats.scales:
        full = torch.as_tensor(scale).expand(2, 2)
        assert torch.equal(full[:, 0], full[:, 1])


SI = {
    "an ion in a trap, metres": (lambda t, q: -((2e6 * math.pi) ** 2) * q, 1e-8, 0.0, 1 / (2e6 * math.pi)),
    "a planet, metres": (lambda t, q: -1.327e20 * q / np.linalg.norm(q) ** 3, 1.496e11, 29780.0, 5.02e6),
    "an electron, atomic distances": (
        lambda t, q: -253.3 * q / np.linalg.norm(q) ** 3,
        5.29e-11,
        2.188e6,
        2.4e-17,
    ),
}


@pytest.mark.parametrize("name", SI)
def test_si_units_lose_no_digits(name):
    """The energy's error is that of an explicit scale of the right size, up to a factor of 8 and 1e-14."""
    field, size, speed, time = SI[name]
    q0, v0 = np.array([size, 0.0]), np.array([0.0, speed])
    best = tuple(2.0 ** math.ceil(math.log2(x)) for x in (size, max(speed, size / time)))
    runs = [
        ode.integrate(field, (q0, v0), scheme="kahan_li8", h=time / 32, steps=400, save_every=20, scale=scale)
        for scale in (None, best)
    ]
    differ = np.abs(runs[0].ys - runs[1].ys).max() / size
    assert differ <= 1e-12
    assert all(np.log2(np.asarray(s)).max() <= np.log2(b) + 3 for s, b in zip(runs[0].stats.scales, best))


# ---- pilots that meet something
# -------------------------------------------------------------------------------


def test_a_field_that_raises_where_only_the_pilot_goes():
    def field(t, y):
        if abs(y[0]) > 2:
            raise ValueError("beyond the domain")
        return -y * y

    found = ode.integrate(field, np.array([1.0]), h=1 / 32, steps=1000)
    assert found.ys[-1, 0] == pytest.approx(1 / (1 + 1000 / 32), rel=1e-5)


def test_a_field_that_is_nan_where_only_the_pilot_goes():
    with np.errstate(invalid="ignore"):
        found = ode.integrate(lambda t, y: -np.sqrt(y), np.array([1.0]), h=1 / 64, steps=64)
    assert found.ys[-1, 0] == pytest.approx(0.25, rel=1e-6)


def test_a_field_that_raises_at_once_says_so_itself():
    def field(t, y):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        ode.integrate(field, np.zeros(1), h=0.1, steps=10)


def test_a_pilot_that_blows_up_hides_no_start():
    """Growth without bound is an overflow with its advice, and not a unit in which the start
    rounds to zero.
    """
    for rate in (1e3, 1e6):
        with pytest.raises(StateOverflowError) as caught, np.errstate(all="ignore"):
            ode.integrate(lambda t, y, r=rate: r * y, np.array([1.0]), scheme="kahan_li6", h=0.01, steps=1000)
        assert "grows without bound" in str(caught.value)


def test_a_pilot_that_blows_up_without_limits_does(monkeypatch):
    """The mutant."""
    monkeypatch.setattr(_units, "_most", lambda start, moved: np.full_like(start, math.inf))
    run = lambda: ode.integrate(lambda t, y: 1e3 * y, np.array([1.0]), scheme="verlet", h=0.01, steps=2000)  # noqa: E731
    with np.errstate(all="ignore"):
        assert not overflows(run)  # in its unit the start is zero


def test_the_pilot_asks_few_times():
    calls = []

    def field(t, q):
        calls.append(float(t))
        return -q

    y0 = (np.array([1.0]), np.array([1.0]))
    given = ode.integrate(field, y0, scheme="kahan_li6", h=1e-3, steps=200, scale=1.0).stats.evaluations
    without = len(calls)
    calls.clear()
    ode.integrate(field, y0, scheme="kahan_li6", h=1e-3, steps=200)
    assert given <= without and len(calls) - without <= math.log2(200) + 2
    assert all(0 <= t <= 0.2 + 1e-12 for t in calls)  # and not outside of the run


# ---- what is said of a scale that is given
# ---------------------------------------------------------------------


@pytest.mark.parametrize("turn", [0.0, 1.0])
@pytest.mark.parametrize("method, equation", METHODS)
def test_a_component_that_never_moves_is_an_error_and_its_scale_passes(method, equation, turn):
    """An ion trap in metres with units of 1: nothing moves. A start that a scale rounds away is
    seen first.
    """
    given = {"state": FixedPoint(64, 55), "scale": 1.0}
    said = 0
    while True:
        try:
            error, _ = oscillator(equation, 1e-25, 1.0, turn, method, **given)
            break
        except ResolutionError as refused:
            assert "leave scale out" in str(refused)
            given["scale"] = refused.scale
            said += 1
            assert said < 4
    expected, _ = oscillator(equation, 1.0, 1.0, turn, method, scale=good_scale(equation))
    assert said and abs(error - expected) <= 1e-4 + 1e-2 * expected


def test_a_start_that_is_rounded_away_goes_unsaid_without_the_check(monkeypatch):
    """The mutant: only increments are looked at, and those of a start of zero are zero."""
    monkeypatch.setattr(_watch, "rounded_away", lambda *_: None)
    error, _ = oscillator("second", 1e-25, 1.0, 1.0, "kahan_li6", scale=1.0)
    assert error > 0.1


@pytest.mark.parametrize("method", ["kahan_li6", "verlet", "hamiltonian"])
def test_few_bits_are_a_warning_and_its_scale_passes(method):
    state = FixedPoint(64, 20)
    with pytest.warns(ResolutionWarning, match="fewer than 8; pass scale=") as caught:
        oscillator("second", 1e-3, 1.0, 0.0, method, scale=1.0, state=state)
    text = str(caught[0].message)
    scale = eval(text.split("pass scale=")[1].split(" for more")[0], {"__builtins__": {}})
    oscillator("second", 1e-3, 1.0, 0.0, method, scale=scale, state=state)  # a warning would be an error here
