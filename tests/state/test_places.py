"""Errors of range advise for the place they are in: required and forbidden words by place and by value, and advice that is followed."""

import math
import pickle
import re

import numpy as np
import pytest
import torch
from torch import nn

import revstep
from revstep import FixedPoint, Float, ode, ops
from revstep.errors import StateOverflowError
from revstep.ode.overflow import Integration
from revstep.stack.audit import Audit
from revstep.state import places
from revstep.state.places import Layer, Primitive, StackInput

NAN, INF = math.nan, math.inf
NAMED = re.compile(r"use FixedPoint\(bits=(\d+), frac_bits=(\d+)\)")

#: What has no business in a message from a place, whatever the value was.
FORBIDDEN = {
    "input": ("GradScaler", "loss scale", "block returned", "weights", "layer", "prev, cur or f", "smaller h"),
    "layer": ("embedding", "padding", "the input itself", ".step", "smaller h", "scale="),
    "primitive": ("GradScaler", "loss", "block", "weights", "stack", "embedding", "smaller h", "scale="),
    "ode": ("GradScaler", "block", "layer", "loss", "weights", "stack", "embedding", "on_nonfinite"),
}


class Adds(nn.Module):
    """A block whose increment is one value in one place, zero elsewhere."""

    def __init__(self, value=0.0, at=(1, 2)):
        super().__init__()
        self.weight, self.value, self.at = nn.Parameter(torch.ones(())), value, at

    def forward(self, x):
        out = 0 * x * self.weight
        out[self.at] = self.value
        return out


def stacked(value, scheme=None, grad=True, fmt=None, at=(1, 2), shape=(3, 4)):
    """The third of four layers adds ``value``."""
    scheme = scheme or revstep.Blend()
    blocks = [Adds(value if k == 2 else 0.0, at) for k in range(4)]
    if scheme.halves == 2:
        blocks = [(Adds(), block) for block in blocks]
    torch.manual_seed(0)  # for a scheme that draws signs
    with torch.set_grad_enabled(grad):
        revstep.ReversibleStack(blocks, scheme, state=fmt or FixedPoint())(torch.zeros(shape))


def given(value, shape=(4, 5), at=(2, 3), pair=False, dtype=torch.float32):
    """A stack is given an input with ``value`` in one place."""
    x = torch.zeros(shape, dtype=dtype)
    x[at] = value
    revstep.ReversibleStack([nn.Identity() for _ in range(2)], revstep.Blend())((torch.zeros_like(x), x) if pair else x)


def stepped(f=0.0, prev=0.0, cur=0.0, scheme=None, fmt=None, inverse=False):
    """A primitive on tensors of six elements with these values in the fifth."""
    scheme, fmt = scheme or revstep.Leapfrog(), fmt or FixedPoint()
    full = [torch.zeros(2, 3, dtype=torch.float64) for _ in range(3)]
    for x, value in zip(full, (prev, cur, f)):
        x[1, 1] = value
    states = [fmt.encode(x)[1] for x in full[:2]]
    (scheme.inverse if inverse else scheme.step)(*states, full[2], layer=2, state=fmt)


def integrated(field, y0=(1.0, 2.0), scheme="midpoint", loop="python", **options):
    start = y0 if isinstance(y0, tuple) and isinstance(y0[0], np.ndarray) else np.array(y0)
    ode.integrate(field, start, scheme=scheme, h=0.5, steps=100, loop=loop, **options)


def after(value, t0=0.9, component=1):
    """A field that is well until t0 and gives ``value`` for one component after it."""

    def f(t, y):
        out = -0.5 * y
        if t > t0:
            out[component] = value
        return out

    return f


GROWS = ode.fields.Linear([[3.0, 0.0], [0.0, 1.0]])

CASES = {
    "input, NaN": ("input", lambda: given(NAN), ["the stack's input", "the input itself holds NaN or Inf", "in row 2", "(2, 3)", "flat index 13", "zero or drop rows", "padding", "embedding"]),
    "input, -Inf in three dimensions": ("input", lambda: given(-INF, (2, 3, 4), (1, 2, 3)), ["flat index 23", "(1, 2, 3)", "in row 1", "zero or drop rows"]),
    "input, in a vector": ("input", lambda: given(NAN, (5,), (3,)), ["flat index 3,", "zero or drop rows"]),
    "input, NaN in a half": ("input", lambda: given(NAN, dtype=torch.bfloat16), ["in row 2", "zero or drop rows"]),
    "input, second of a pair": ("input", lambda: given(NAN, pair=True), ["the stack's input, the second tensor of the pair", "in row 2", "zero or drop rows"]),
    "input, large": ("input", lambda: given(5e3), ["in row 2", "scale the input down", "use FixedPoint(bits=32, frac_bits=16)"]),
    "input, beyond all formats": ("input", lambda: given(1e25), ["scale the input down", "no fixed-point format holds such values"]),
    "input, beyond float32's part": ("input", lambda: given(1e36), ["the input itself holds NaN or Inf (below float64 also a finite value above 3e+32"]),
    "layer, NaN": ("layer", lambda: stacked(NAN), ["layer 2:", "a block returned NaN or Inf", "its weights", "in row 1", "(1, 2)", "loss scale", "on_nonfinite='propagate' lets a GradScaler skip"]),
    "layer, half G": ("layer", lambda: stacked(INF, revstep.Hamiltonian()), ["layer 2 (G):", "a block returned NaN or Inf"]),
    "layer, NaN without gradients": ("layer", lambda: stacked(NAN, grad=False), ["layer 2:", "a block returned NaN or Inf", "its weights"]),
    "layer, large": ("layer", lambda: stacked(3e3), ["layer 2:", "the block returned is finite", "in row 1", "use FixedPoint("]),
    "layer, large under random rows": ("layer", lambda: stacked(5e3, revstep.BDIA()), ["layer 2:", "the block returned is finite", "use FixedPoint("]),
    "layer, beyond all formats": ("layer", lambda: stacked(1e25), ["layer 2:", "scale the blocks' outputs down: no fixed-point format holds such values"]),
    "primitive, NaN": ("primitive", lambda: stepped(NAN), ["leapfrog.step, layer 2:", "f holds NaN or Inf", "(1, 1)", "look at what computed f"]),
    "primitive, f large": ("primitive", lambda: stepped(3e3), ["f brings the largest part", "1 f = 3000", "use FixedPoint("]),
    "primitive, cur large": ("primitive", lambda: stepped(1.0, 5.0, 1500.0), ["cur brings the largest part", "2 cur = 3000", "-1 prev = -5", "use FixedPoint("]),
    "primitive, prev large": ("primitive", lambda: stepped(300.0, -1900.0, 0.0), ["prev brings the largest part", "-1 prev = 1900", "use FixedPoint("]),
    "primitive, beyond all formats": ("primitive", lambda: stepped(1e25), ["make f smaller: no fixed-point format holds such values"]),
    "primitive, inverse": ("primitive", lambda: stepped(3e3, inverse=True), ["leapfrog.inverse, layer 2:", "the nxt, cur, f and carry of one step", "f brings the largest part", "use FixedPoint("]),
    "primitive, inverse and NaN": ("primitive", lambda: stepped(NAN, inverse=True), ["leapfrog.inverse", "f holds NaN or Inf"]),
    "ode, the field is NaN": ("ode", lambda: integrated(after(NAN)), ["step 2, t = 1, component (1,) of y", "the field returned nan for that component", "singularity", "smaller h"]),
    "ode, the field is Inf": ("ode", lambda: integrated(after(INF, component=0)), ["component (0,) of y", "the field returned inf"]),
    "ode, NaN in floats": ("ode", lambda: integrated(after(NAN), state=Float(torch.float64)), ["step 2, t = 1, component (1,)", "not finite in Float", "the field returned nan", "singularity"]),
    "ode, growth": ("ode", lambda: integrated(GROWS), ["step 4, t = 2, component (0,) of y", "stability region", "smaller h", "pass scale=", "use FixedPoint(bits=64"]),
    "ode, growth, compiled": ("ode", lambda: integrated(GROWS, loop="compiled"), ["step 4, t = 2, component (0,) of y", "stability region", "smaller h", "pass scale=", "use FixedPoint(bits=64"]),
    "ode, growth of one system, compiled": ("ode", lambda: integrated(GROWS, [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], loop="compiled"), ["component (2, 0) of y", "smaller h"]),
    "ode, q of a pair": ("ode", lambda: integrated((lambda t, p: 3 * p, lambda t, q: 0 * q), (np.array([0.0, 0.0]), np.array([0.0, 1.0])), "verlet"), ["component (1,) of q", "pass scale=(2.0**"]),
    "ode, the start": ("ode", lambda: integrated(GROWS, (1.0, 3e12), state=FixedPoint(64)), ["step 0, t = 0, the start, component (1,) of y", "the start does not fit", "pass scale=2.0**", "use FixedPoint(bits=64"]),
    "ode, beyond all formats": ("ode", lambda: integrated(GROWS, (1e70, 0.0), state=FixedPoint(64)), ["the start does not fit", "pass scale=2.0**"]),
}  # fmt: skip


def raised(call):
    with pytest.raises(StateOverflowError) as caught, np.errstate(all="ignore"):
        call()
    return caught.value


def violations(message, kind, required):
    return [f"lacks {word!r}" for word in required if word not in message] + [f"says {word!r}" for word in FORBIDDEN[kind] if word in message]


@pytest.mark.parametrize("kind, call, required", CASES.values(), ids=CASES)
def test_the_words_fit_the_place(kind, call, required):
    error = raised(call)
    assert violations(str(error), kind, required) == []
    assert (str(error).startswith(error.fault + "; ") and error.largest > error.limit) or error.largest == INF


def before(self, stats, fmt):
    """What every place said before there were places."""
    if not math.isfinite(stats.largest):
        return "a block returned NaN or Inf: look at its weights, its input and the loss scale; on_nonfinite='propagate' lets a GradScaler skip such a step"
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
    monkeypatch.setattr(Audit, "trains", property(lambda self: True, lambda self, value: None), raising=False)  # the mutant
    assert "GradScaler" in str(raised(lambda: stacked(NAN, grad=False)))


def _states(value):
    blocks = [Adds(value if k == 1 else 0.0).requires_grad_(False) for k in range(3)]
    revstep.ReversibleStack(blocks, revstep.Blend()).states(torch.zeros(3, 4))


def test_deferred_statistics_name_the_same_place(monkeypatch):
    """On devices the numbers are read at the end of the pass: place, row and advice are the same."""
    calls = [case[1] for case in CASES.values() if case[0] in ("input", "layer")]
    at_once = [str(raised(call)) for call in calls]
    original = Audit.__init__
    monkeypatch.setattr(Audit, "__init__", lambda self, fmt, halves, checks, now, publish: original(self, fmt, halves, checks, False, publish))
    later = [str(raised(call)) for call in calls]
    assert at_once == later


def test_the_index_is_that_of_the_value():
    for shape, at in (((3, 4), (2, 1)), ((2, 3, 4), (1, 0, 2)), ((5,), (4,)), ((2, 1, 3, 2), (0, 0, 2, 1))):
        error = raised(lambda shape=shape, at=at: given(NAN, shape, at))
        assert places.unravel(error.index, shape) == at == tuple(int(i) for i in np.unravel_index(error.index, shape))
    transposed = torch.zeros(4, 3)
    transposed[1, 2] = NAN
    error = raised(lambda: revstep.ReversibleStack([nn.Identity()], revstep.Blend())(transposed.T))
    assert places.unravel(error.index, (3, 4)) == (2, 1) and "in row 2" in str(error)


# ---- advice is followed ----

FORMATS = [FixedPoint(), FixedPoint(32, 30), FixedPoint(32, 3), FixedPoint(32, 0), FixedPoint(64), FixedPoint(64, 61), FixedPoint(64, 3)]


def excesses(fmt):
    """Values that ``fmt`` does not hold, from just above its range to just below the widest range, and beyond it."""
    top = 2.0 ** (31 - fmt.frac_bits if fmt.bits == 32 else 62 - fmt.frac_bits)
    return [top * x for x in (1.0, 1.001, 1.5, 2.0, 3.99, 4.0, 1e3, 1e6)] + [2.0**61 * 1.99, 2.0**62, 1e19, 1e30]


def only(value):
    """Zero but where ``Adds`` adds: elsewhere the sum of the states would be reported."""
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1, 2] = value
    return x


def followed(error, again):
    """Whether the format that the message names gets past the failing step; where none is named it must say so."""
    named = NAMED.search(str(error))
    if named is None:
        assert "no fixed-point format holds such values" in str(error) and error.advised is None
        return None
    better = FixedPoint(int(named[1]), int(named[2]))
    assert error.advised == better
    again(better)
    return better


@pytest.mark.parametrize("scheme", [revstep.Leapfrog(), revstep.Midpoint(), revstep.MidpointBlend(a=-1.5), revstep.Blend()], ids=lambda s: s.name)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_layers_advice_is_enough(fmt, scheme):
    """The states before the step are as large as they may be, so that the sum is larger than the increment that is reported."""
    for value in excesses(fmt):
        if value <= fmt.limit:
            continue

        def call(state, value=value):
            edge = only(0.999 * fmt.limit)
            sign = torch.sign(torch.tensor(scheme.coefficients(0).alpha, dtype=torch.float64))
            gamma = scheme.coefficients(0).gamma
            block = Adds(value / gamma if gamma else 0.0).double()
            prev = sign * edge
            revstep.ReversibleStack([block], scheme, state=state)((prev, edge))

        error = raised(lambda call=call: call(fmt))
        better = followed(error, call)
        assert better is not None or value > 2.0**59  # up to four states beside it, of 2**62 at most


def test_without_the_states_share_the_advice_is_too_small(monkeypatch):
    """The mutant: only the increment is looked at, as before; Leapfrog's 2 cur - prev then leaves the advised format."""
    fmt, scheme = FixedPoint(64, 3), revstep.Leapfrog()
    edge = only(0.999 * fmt.limit)

    def call(state):
        revstep.ReversibleStack([Adds(1.9 * fmt.limit).double()], scheme, state=state)((-edge, edge))

    assert followed(raised(lambda: call(fmt)), call)
    monkeypatch.setattr(Audit, "coefficients", property(lambda self: (), lambda self, value: None), raising=False)
    with pytest.raises(StateOverflowError):
        followed(raised(lambda: call(fmt)), call)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_primitives_advice_is_enough(fmt, inverse):
    for value in excesses(fmt):
        for edge in (0.0, 0.999 * fmt.limit):

            def call(state, value=value, edge=edge):
                stepped(value * (-1 if inverse else 1), -edge, edge * (-1 if inverse else 1), fmt=state, inverse=inverse)

            followed(raised(lambda call=call: call(fmt)), call)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_an_inputs_advice_is_enough(fmt):
    for value in excesses(fmt):

        def call(state, value=value):
            x = torch.zeros(3, 4, dtype=torch.float64)
            x[1, 2] = -value
            revstep.ReversibleStack([Adds().double()], revstep.Midpoint(), state=state)(x)

        followed(raised(lambda call=call: call(fmt)), call)


def test_errors_come_back_from_other_processes():
    error = raised(lambda: given(NAN))
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error) and vars(back) == vars(error)


def test_the_statistics_are_all_the_builder_needs():
    error = places.overflow(ops.Stats(0, 3, 5000.0, 7), FixedPoint(), StackInput(), (2, 4))
    assert (error.layer, error.largest, error.index, error.advised) == (-1, 5000.0, 7, FixedPoint(32, 16))
    assert "3 value(s) outside FixedPoint(bits=32, frac_bits=20)" in error.fault and "index (1, 3), in row 1" in error.fault
