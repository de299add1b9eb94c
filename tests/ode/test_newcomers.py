"""What somebody who has read one page gets wrong first is said in words that help; the words are followed."""

import re
import warnings

import numpy as np
import pytest
import torch

from revstep import ode
from revstep.errors import ConfigError, ResolutionWarning, StateOverflowError
from revstep.ode import _equations, _starts
from revstep.ode.methods import TwoStep

ONE = [1.0, 0.0]


def turning(y):
    return np.stack([y[..., 1], -y[..., 0]], -1)


# ---- the order of the arguments ----


def scipy_order(y, t):
    return turning(y) + 0.1 * t


def with_arguments(state, time, strength):
    return strength * turning(state)


@pytest.mark.parametrize("f, args", [(scipy_order, ()), (with_arguments, (2.0,)), (lambda x, t: -x, ())])
def test_the_state_before_the_time_is_refused(f, args):
    with pytest.raises(ConfigError, match=r"the time first: exchange the two"):
        ode.integrate(f, ONE, h=0.1, steps=3, args=args)
    with pytest.raises(ConfigError, match=r"the time first"):
        ode.integrate(ode.Separable(lambda t, p: p, f), (np.ones(2), np.ones(2)), h=0.1, steps=3, args=args)


USUAL = [lambda t, y: turning(y), lambda time, t: turning(t), lambda *a: turning(a[1]), lambda a, b: -b]


@pytest.mark.parametrize("f", USUAL)
def test_other_names_are_accepted(f):
    assert ode.integrate(f, ONE, h=0.1, steps=3).ys.shape == (2, 2)


def test_without_the_look_at_names_another_equation_is_integrated(monkeypatch):
    """The mutant: y' = -y + t / 2 asked in the wrong order gives a number, and nobody says so."""
    monkeypatch.setattr(_equations, "_TIME", ())
    wrong = ode.integrate(lambda y, t: -y + t / 2, np.array(1.0), h=0.1, steps=10).ys[-1]
    right = ode.integrate(lambda t, y: -y + t / 2, np.array(1.0), h=0.1, steps=10).ys[-1]
    assert abs(wrong - right) > 0.1


# ---- pairs, methods, dtypes ----


@pytest.mark.parametrize("start", [[[1.0], [0.0]], np.zeros((2, 1)), torch.zeros(2, 1)])
def test_a_list_of_two_arrays_is_told_to_be_a_tuple(start):
    with pytest.raises(ConfigError, match=r"needs a pair \(q0, v0\): write it as a tuple"):
        ode.integrate(ode.SecondOrder(lambda t, q: -q), start, h=0.1, steps=3)


OTHERS = [("midpoint", "second"), ("leapfrog", "first"), ("reversible_rk4", "separable")]


@pytest.mark.parametrize("name, equation", OTHERS)
def test_a_method_of_another_equation_is_answered_with_those_that_fit(name, equation):
    field = ode.fields.Linear([[-1.0]], equation=equation)
    y0 = np.ones(1) if equation == "first" else (np.ones(1), np.zeros(1))
    with pytest.raises(ConfigError, match="leave scheme out for") as caught:
        ode.integrate(field, y0, scheme=name, h=0.1, steps=3)
    named = set(re.search(r"or take one of (.*)$", str(caught.value))[1].split(", "))
    assert named == {n for n, m in ode.available().items() if equation in m.equations}


class TimeAndState(torch.nn.Module):
    def __init__(self, told):
        super().__init__()
        self.layer, self.told = torch.nn.Linear(3, 2), told

    def forward(self, t, y):
        t = t.to(y.dtype) if self.told else t
        return self.layer(torch.cat([y, t.expand(*y.shape[:-1], 1)], -1))


def test_the_dtype_of_the_time_is_named_where_a_network_trips_over_it():
    y0 = torch.ones(4, 2)
    with pytest.raises(ConfigError, match=r"write t\.to\(y\.dtype\)"):
        ode.integrate(TimeAndState(False), y0, h=0.1, steps=3)
    assert ode.integrate(TimeAndState(True), y0, h=0.1, steps=3).ys.dtype == torch.float32


def wrong_shape(t, y):
    return y @ torch.ones(5, 5)


def of_another_dtype(t, y):
    return y @ torch.ones(2, 2, dtype=torch.float64)


@pytest.mark.parametrize("f, dtype", [(wrong_shape, torch.float32), (of_another_dtype, torch.bfloat16)])
def test_errors_of_the_field_itself_stay_what_they_are_or_are_its_cause(f, dtype):
    with pytest.raises((RuntimeError, ConfigError)) as caught:
        ode.integrate(f, torch.ones(2, dtype=dtype), h=0.1, steps=3)
    error = caught.value
    assert type(error) is RuntimeError or isinstance(error.__cause__, RuntimeError)


def test_without_the_help_the_dtype_error_says_nothing_of_the_time(monkeypatch):
    monkeypatch.setattr(_starts, "_told", lambda f, t, x, args: f(t, x, *args))
    with pytest.raises(RuntimeError) as caught:
        ode.integrate(TimeAndState(False), torch.ones(4, 2), h=0.1, steps=3)
    assert "t.to" not in str(caught.value)


# ---- a warning, an overflow and failed members ----


def few_bits(f, y0, scale):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ode.integrate(f, y0, h=0.01, steps=20, scale=scale)
    return [w.message for w in seen if isinstance(w.message, ResolutionWarning)]


@pytest.mark.parametrize("shape", [(2,), (7, 2), (3, 4, 2)])
def test_the_warning_is_given_once_and_its_scale_silences_it(shape):
    y0 = np.ones(shape) * [3.0, 50.0]
    (warning,) = few_bits(lambda t, y: turning(y), y0, 2.0**48)
    assert "error.scale" not in str(warning)
    assert few_bits(lambda t, y: turning(y), y0, warning.scale) == []


@pytest.mark.parametrize("scheme, named", [("midpoint", True), ("blend", True), ("verlet", False)])
def test_an_overflow_of_a_two_step_scheme_names_its_second_solution(scheme, named):
    growing = ode.fields.Linear([[3.0]])
    with pytest.raises(StateOverflowError) as caught:
        ode.integrate(growing, ONE[:1], scheme=scheme, h=0.1, steps=200)
    assert ("carries a second solution" in str(caught.value)) is named
    damped = ode.fields.Linear([[0.0, 1.0], [-1.0, -0.2]])
    if scheme == "midpoint":
        with pytest.raises(StateOverflowError, match=r"not the solution that grew .* take 'blend'"):
            ode.integrate(damped, ONE, scheme=scheme, h=0.05, steps=6000)


def test_the_second_solution_is_named_by_the_method(monkeypatch):
    monkeypatch.setattr(TwoStep, "parasite", lambda self, equation: None)
    with pytest.raises(StateOverflowError) as caught:
        ode.integrate(ode.fields.Linear([[3.0]]), ONE[:1], scheme="midpoint", h=0.1, steps=200)
    assert "second solution" not in str(caught.value)


@pytest.mark.parametrize("bad", [1, 2])
def test_failed_members_are_in_the_five_lines_and_the_energy_is_of_the_others(bad):
    q0 = np.array([[0.5], [0.4], [1e9]] if bad == 1 else [[0.5], [1e9], [1e9]])

    def well(t, q):
        return np.where(np.abs(q) > 1e8, np.nan, -q)

    field = ode.SecondOrder(well, energy=lambda q, v: (q * q + v * v).sum(-1) / 2)
    run = ode.integrate(field, (q0, np.zeros_like(q0)), h=0.1, steps=30, save_every=3, on_failure="drop")
    words = f"{bad} member{'s' if bad > 1 else ''} failed"
    assert len(repr(run).splitlines()) == 5 and words in repr(run) and words in run.summary()
    assert "nan" not in repr(run)


def test_a_run_goes_on_from_its_bits_alone():
    whole = ode.integrate(lambda t, y: turning(y), ONE, h=0.1, steps=20)
    half = ode.integrate(lambda t, y: turning(y), ONE, h=0.1, steps=10)
    rest = ode.integrate(lambda t, y: turning(y), start=half.final, steps=10)
    assert np.array_equal(rest.ys[-1], whole.ys[-1])
    with pytest.raises(ConfigError, match="y0 is NoneType, expected a NumPy array"):
        ode.integrate(lambda t, y: turning(y), h=0.1, steps=10)
