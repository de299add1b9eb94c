"""What ``odeint`` refuses, whichever method is named, and what it says then."""

import importlib
import math

import numpy as np
import pytest
import torch
from odeint_problems import NAMES

import revstep
from revstep import ode

# The files, not the functions of their names.
OURS, THEIRS = map(importlib.import_module, ("revstep.ode._odeint", "torchdiffeq._impl.odeint"))
OTHERS = sorted(OURS.ELSEWHERE)
D = torch.float64

T = torch.tensor([0.0, 0.5, 1.0])
ONE = torch.ones(2)
REFUSED = {
    "rtol": (dict(rtol=1e-6), "rtol given.*fixed.*step_size"),
    "both tolerances": (dict(rtol=1e-6, atol=1e-6), "rtol and atol given"),
    "an event": (dict(event_fn=lambda t, y: y), "event_fn"),
    "an unknown option": (dict(options={"step": 0.1}), "no option 'step', expected some of step_size"),
    "options of an adaptive method": (
        dict(options={"first_step": 0.1, "norm": abs}),
        "no option 'first_step', 'norm'",
    ),
    "options that are a number": (dict(options=0.1), "options is float"),
    "an interpolant": (
        dict(options={"interp": "quintic"}),
        "interp.*'quintic', expected one of 'linear', 'cubic'",
    ),
    "a perturbation that is a number": (dict(options={"perturb": 1}), "perturb"),
    "two grids": (
        dict(options={"step_size": 0.1, "grid_constructor": lambda f, y, t: t}),
        "both place the steps",
    ),
    "a grid of another interval": (
        dict(options={"grid_constructor": lambda f, y, t: t[:-1]}),
        r"from 0\.0 to 0\.5, expected 0\.0 to 1\.0",
    ),
    "a grid out of order": (
        dict(options={"grid_constructor": lambda f, y, t: t[[0, 1, 1, 2]]}),
        "grid of 4 times.*not strictly",
    ),
    "a grid that is a list": (
        dict(options={"grid_constructor": lambda f, y, t: [0.0, 1.0]}),
        "returned list",
    ),
    "no steps to tell apart": (
        dict(t=torch.tensor([1e16, 1e16 + 64], dtype=D), options={"step_size": 0.1}),
        "not strictly",
    ),
    "a step of zero": (dict(options={"step_size": 0.0}), "step_size.*positive"),
    "a negative step": (dict(options={"step_size": -0.1}), "step_size.*positive"),
    "a step that is a word": (dict(options={"step_size": "0.1"}), "step_size.*positive"),
    "times out of order": (dict(t=torch.tensor([0.0, 1.0, 0.5])), "not strictly"),
    "a time twice": (dict(t=torch.tensor([0.0, 0.5, 0.5])), "not strictly"),
    "no times": (dict(t=torch.tensor([])), "at least one time"),
    "times in two axes": (dict(t=torch.zeros(2, 2)), "shape"),
    "an endless time": (dict(t=torch.tensor([0.0, math.inf])), "finite"),
    "no number": (dict(t=torch.tensor([0.0, math.nan])), "finite"),
    "bool times": (dict(t=torch.tensor([False, True])), "torch.bool, expected real"),
    "complex times": (dict(t=torch.tensor([0, 1 + 1j])), "complex64, expected real"),
    "dates": (dict(t=np.array(["2026-01-01", "2026-01-02"], "datetime64[s]")), r"values of datetime64\[s\]"),
    "masked times": (dict(t=np.ma.array([0.0, 0.5, 1.0], mask=[0, 1, 0])), "masked times.*compressed"),
    "no times at all": (dict(t=None), "NoneType with values of object"),
    "times in words": (dict(t=["0", "1"]), "expected"),
    "a list of tensors": (dict(t=[torch.tensor(0.0), torch.tensor(1.0)]), "torch.stack"),
    "a list as a start": (dict(y0=[1.0, 2.0]), r"y0 is list, expected a tensor.*tuple\(y0\)"),
    "an integer start": (dict(y0=torch.tensor([1])), "y0 is torch.int64"),
    "a part that is a number": (dict(y0=(ONE, 1.0)), "part 1 of y0 is float"),
    "no part": (dict(y0=()), "empty tuple"),
    "a sparse start": (dict(y0=torch.ones(3).to_sparse()), "dense"),
    "a second-order field": (dict(func=ode.SecondOrder(lambda t, q: -q), y0=(ONE, ONE)), "integrates y' = f"),
    "two functions": (dict(func=(lambda t, p: p, lambda t, q: -q), y0=(ONE, ONE)), "integrates y' = f"),
    "a value of another shape": (dict(func=lambda t, y: y[:1]), r"shape \(1,\), expected \(2,\)"),
    "a value with an axis more": (dict(func=lambda t, y: y[None]), r"shape \(1, 2\), expected \(2,\)"),
    "a complex value": (dict(func=lambda t, y: 1j * y), "complex64, but the state is torch.float32"),
    "an array": (dict(func=lambda t, y: y.numpy()), "ndarray"),
    "too few parts": (
        dict(func=lambda t, y: y[:1], y0=(ONE, ONE)),
        "returned 1 parts, expected a tuple of 2",
    ),
    "one tensor for two parts": (dict(func=lambda t, y: y[0], y0=(ONE, ONE)), "returned Tensor"),
    "the wrong part": (
        dict(func=lambda t, y: (y[1], y[0]), y0=(ONE, ONE[:1])),
        r"part 0 of the field's value has shape \(1,\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("changed, message", REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(changed, message):
    given = dict(func=lambda t, y: -y, y0=ONE, t=T, method="rk4") | changed
    with pytest.raises(revstep.ConfigError, match=message):
        ode.odeint(given.pop("func"), given.pop("y0"), given.pop("t"), **given)


def test_a_field_must_not_write_to_its_argument():
    with pytest.raises(revstep.UnsupportedError, match="in place"):
        ode.odeint(lambda t, y: y.mul_(-1), torch.ones(2), T, method="rk4")


@pytest.mark.parametrize("name", OTHERS)
def test_torchdiffeqs_other_methods_say_what_they_map_to(name):
    with pytest.raises(revstep.ConfigError, match=rf"^{name} .*'rk4'") as caught:
        ode.odeint(lambda t, y: -y, ONE, T, method=name)
    named = str(caught.value).split("'")[1]
    assert named in NAMES or named in (*ode.available(), "two_step_midpoint")  # what is advised is there
    assert set(THEIRS.SOLVERS) == {*NAMES, *OTHERS}
