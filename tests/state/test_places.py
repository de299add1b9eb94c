"""Errors of range advise for the place they are in: required and forbidden words by place and by value."""

import math
import pickle

import numpy as np
import pytest
import torch
from place_cases import CASES, NAN, Adds, given, raised, stacked, violations
from torch import nn

import revstep
from revstep import FixedPoint, ops
from revstep.ode._overflow import Integration
from revstep.stack._audit import Audit
from revstep.state import _places
from revstep.state._places import Layer, Primitive, StackInput


@pytest.mark.parametrize("kind, call, required", CASES.values(), ids=CASES)
def test_the_words_fit_the_place(kind, call, required):
    error = raised(call)
    assert violations(str(error), kind, required) == []
    assert str(error).startswith(error.fault + "; ")
    assert error.largest > error.limit or error.largest == math.inf


def before(self, stats, fmt):
    """What every place said before there were places."""
    if not math.isfinite(stats.largest):
        looks = "a block returned NaN or Inf: look at its weights, its input and the loss scale"
        return f"{looks}; on_nonfinite='propagate' lets a GradScaler skip such a step"
    return "use FixedPoint(bits=32, frac_bits=18), which holds +-8192 on a grid of 3.8e-06"


@pytest.mark.parametrize("kind, call, required", CASES.values(), ids=CASES)
def test_the_old_text_is_rejected_everywhere(monkeypatch, kind, call, required):
    """The mutant: one text for all places. For a layer, the text of an input."""
    of_input = StackInput.advice
    for place in (StackInput, Primitive, Integration):
        monkeypatch.setattr(place, "advice", before)
    monkeypatch.setattr(Layer, "advice", lambda self, stats, fmt: of_input(StackInput(), stats, fmt))
    assert violations(str(raised(call)), kind, required)


def test_nothing_of_training_where_nothing_trains(monkeypatch):
    """An evaluation cannot skip a step: no word about scalers, loss scales and on_nonfinite."""
    words = ("GradScaler", "loss scale", "on_nonfinite")
    for call in (lambda: stacked(NAN, grad=False), lambda: _states(NAN)):
        assert not [word for word in words if word in str(raised(call))]
    always = property(lambda self: True, lambda self, value: None)  # the mutant
    monkeypatch.setattr(Audit, "trains", always, raising=False)
    assert "GradScaler" in str(raised(lambda: stacked(NAN, grad=False)))


def _states(value):
    blocks = [Adds(value if k == 1 else 0.0).requires_grad_(False) for k in range(3)]
    revstep.ReversibleStack(blocks, revstep.Blend()).states(torch.zeros(3, 4))


def test_deferred_statistics_name_the_same_place(monkeypatch):
    """On devices the numbers are read at the end of the pass: place, row and advice are the same."""
    calls = [case[1] for case in CASES.values() if case[0] in ("input", "layer")]
    at_once = [str(raised(call)) for call in calls]
    original = Audit.__init__
    monkeypatch.setattr(
        Audit,
        "__init__",
        lambda self, fmt, halves, checks, now, publish: original(self, fmt, halves, checks, False, publish),
    )
    later = [str(raised(call)) for call in calls]
    assert at_once == later


def test_the_index_is_that_of_the_value():
    for shape, at in (((3, 4), (2, 1)), ((2, 3, 4), (1, 0, 2)), ((5,), (4,)), ((2, 1, 3, 2), (0, 0, 2, 1))):
        error = raised(lambda shape=shape, at=at: given(NAN, shape, at))
        assert _places.unravel(error.index, shape) == at == np.unravel_index(error.index, shape)
    transposed = torch.zeros(4, 3)
    transposed[1, 2] = NAN
    error = raised(lambda: revstep.ReversibleStack([nn.Identity()], revstep.Blend())(transposed.T))
    assert _places.unravel(error.index, (3, 4)) == (2, 1) and "in row 2" in str(error)


def test_errors_come_back_from_other_processes():
    error = raised(lambda: given(NAN))
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error) and vars(back) == vars(error)


def test_the_statistics_are_all_the_builder_needs():
    error = _places.overflow(ops.Stats(0, 3, 5000.0, 7), FixedPoint(), StackInput(), (2, 4))
    assert (error.layer, error.largest, error.index, error.advised) == (-1, 5000.0, 7, FixedPoint(32, 16))
    assert "3 value(s) outside FixedPoint(bits=32, frac_bits=20)" in error.fault
    assert "first at flat index 7, which is index (1, 3), in row 1" in error.fault
