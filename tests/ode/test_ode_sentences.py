"""Refusals that no other test reads, of arguments that are rarely wrong; and the paths beside them."""

import builtins
import dataclasses
import re

import pytest
import torch

from revstep import ConfigError, UnsupportedError, ode
from revstep.ode.methods import splitting
from revstep.ode.methods.twostep import from_scheme
from revstep.schemes import BDIA, Hamiltonian, Midpoint

ONE, PAIR = torch.ones(2), (torch.ones(1), torch.zeros(1))


def decay(t, y):
    return -y


def run(y0=ONE, field=decay, **options):
    return ode.integrate(field, y0, **{"t1": 1.0, "steps": 4} | options)


class Asks:
    """A function whose steps are to be accepted or rejected, which a fixed grid does not do."""

    def __call__(self, t, y):
        return -y

    def callback_accept_step(self, t, y, dt):
        raise AssertionError("never called")


class Strange:
    """Says that it is of an equation that there is not."""

    equation = "third"

    def functions(self):
        return (decay,)


class Cubic(Midpoint):
    """Its step is of the third power of h."""

    def coefficients(self, *place):
        return super().coefficients(*place)._replace(gamma=self.h**3)


CASES = {
    "a step too small to count": (lambda: run(steps=None, h=5e-324), "no number that there is makes a span"),
    "half complex numbers": (lambda: run(torch.ones(2, dtype=torch.complex32)), "expected complex64"),
    "no function in a field": (
        lambda: run(field=ode.FirstOrder(3)),
        "FirstOrder got int, expected a function",
    ),
    "a scale in words": (lambda: run(scale="large"), "scale is 'large', expected powers of two"),
    "another shape from a field": (
        lambda: run(field=lambda t, y: y[:1]),
        "returned .*expected a tensor of the state's shape",
    ),
    "times of no shape": (
        lambda: ode.odeint(decay, ONE, [[0.0], [0.5, 1.0]], method="midpoint"),
        "t is list .*, expected a tensor of times",
    ),
    "a grid that nobody can make": (
        lambda: ode.odeint(
            decay, ONE, torch.tensor([0.0, 1.0]), method="midpoint", options={"grid_constructor": 3}
        ),
        "grid_constructor'] is 3, expected a function",
    ),
    "steps without number": (
        lambda: ode.odeint(
            decay, ONE, torch.tensor([0.0, 1.0]), method="midpoint", options={"step_size": 1e-300}
        ),
        "steps: give a larger one",
    ),
    "a start of a one-step method": (
        lambda: from_scheme(Hamiltonian(), start="euler"),
        "start is 'euler', but hamiltonian is a one-step method",
    ),
    "args that are no tuple": (
        lambda: run(args=3.0),
        r"args is float, expected a tuple of the field's further arguments: args=\(a,\)",
    ),
    "steps that are no number": (lambda: run(steps=True), "steps is True, expected"),
    "no step": (lambda: run(steps=None, h=0.0), "h is 0, expected a non-zero step size"),
    "a field of no equation": (lambda: run(field=Strange()), "field has equation 'third', expected one of"),
    "weights out of range": (
        lambda: ode.ReversibleRK("rk4", lam=1.5),
        "ReversibleRK lam = 1.5: expected 0 < lam <= 1",
    ),
    "copies coupled too much": (
        lambda: splitting.SplittingMethod(None, couple=1.0),
        "SplittingMethod couple = 1.0: expected 0",
    ),
    "a class of a scheme that draws": (lambda: run(scheme=BDIA), "bdia"),
    "a step size of no power": (lambda: run(scheme=Cubic()), "gamma is 1.0 at h = 1 and 8.0 at h = 2"),
    "a value that is no number of the state": (
        lambda: ode.odeint(lambda t, y: y[0] > 0, ONE, torch.tensor([0.0, 1.0]), method="midpoint"),
        "bool",
    ),
    "a phase of one component": (
        lambda: run(torch.ones(1)).plot("phase"),
        "needs two components, and y has one",
    ),
}


@pytest.mark.parametrize("call, sentence", CASES.values(), ids=CASES)
def test_the_sentence(call, sentence):
    with pytest.raises(ConfigError, match=sentence):
        call()


def test_a_run_goes_on_with_its_own_equation():
    solution = run(PAIR, ode.SecondOrder(decay))
    with pytest.raises(ConfigError, match=r"start holds slots of .*, but the field is of"):
        ode.integrate((lambda q: q, lambda p: p), start=solution.final, t1=2.0, steps=4)


def test_the_phase_of_two_components():
    pytest.importorskip("matplotlib").use("agg")
    from matplotlib import pyplot

    pyplot.figure()  # another test may have left one with lines in it
    axes = run().plot("phase")
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("y[0]", "y[1]")
    (line,) = axes.lines
    assert len(line.get_xdata()) > 0


def test_a_picture_without_matplotlib(monkeypatch):
    solution, real = run(), builtins.__import__

    def without(name, *rest):
        if name.split(".")[0] == "matplotlib":
            raise ModuleNotFoundError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=re.escape("plot() needs matplotlib; run: pip install matplotlib")):
        solution.plot("energy")


def test_a_callback_that_is_never_called_is_said():
    with pytest.warns(UserWarning, match="callback_accept_step, which is never called"):
        ode.odeint(Asks(), ONE, torch.tensor([0.0, 1.0]), method="midpoint")


def test_what_two_runs_have_in_common_is_a_key():
    same, other = run(), run(steps=8)
    assert hash(same.stats) == hash(run().stats) and {same.stats: 1}.get(other.stats) is None


def test_a_scheme_without_an_equation(monkeypatch):
    monkeypatch.setattr(BDIA, "claims", dataclasses.replace(BDIA.claims, equation="none that is known"))
    with pytest.raises(ConfigError, match="bdia integrates 'none that is known', expected one of"):
        from_scheme(BDIA())


def test_a_function_that_cannot_be_looked_into():
    """Of one written in C nobody knows the arguments; it is called with the time and the state."""
    assert torch.equal(run(field=torch.mul).ys[-1], run(field=lambda t, y: t * y).ys[-1])


def test_nothing_is_a_state_too():
    solution = run(torch.ones(0))
    assert solution.ys.shape == (2, 0) and solution.stats.evaluations > 0
    with pytest.raises(ConfigError, match="needs a pair"):
        run(torch.ones(0), field=ode.SecondOrder(decay))


def test_no_argument_is_no_tuple_of_none():
    assert torch.equal(run(args=None).ys, run().ys)


def test_fields_that_change_their_argument():
    def field(t, y):
        return y.neg_()

    with pytest.raises(UnsupportedError, match="in place"):
        run(field=field)


def test_a_run_goes_on_over_a_span():
    """The time at which it begins is where the run before ended, said or not."""
    first = run(steps=4, t1=1.0)
    on = ode.integrate(decay, start=first.final, t_span=(1.0, 2.0))
    assert torch.equal(on.ys[-1], run(steps=8, t1=2.0).ys[-1])
    again = ode.integrate(decay, first.ys[-1], start=first.final, t1=2.0, steps=4)
    assert torch.equal(again.ys[-1], on.ys[-1])
