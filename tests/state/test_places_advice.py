"""Advice in errors is followed: what a message names gets past the place where it was raised."""

import re

import pytest
import torch
from place_cases import Adds, raised, stepped
from torch import nn

import revstep
from revstep import FixedPoint
from revstep.errors import StateOverflowError
from revstep.stack._audit import Audit

NAMED = re.compile(r"use FixedPoint\(bits=(\d+), frac_bits=(\d+)\)")
FORMATS = [
    FixedPoint(),
    FixedPoint(32, 30),
    FixedPoint(32, 3),
    FixedPoint(32, 0),
    FixedPoint(64),
    FixedPoint(64, 61),
    FixedPoint(64, 3),
]


def excesses(fmt):
    """Values that ``fmt`` does not hold, from just above its range to the widest, and beyond it."""
    top = 2.0 ** (31 - fmt.frac_bits if fmt.bits == 32 else 62 - fmt.frac_bits)
    near = [top * x for x in (1.0, 1.001, 1.5, 2.0, 3.99, 4.0, 1e3, 1e6)]
    return [*near, 2.0**61 * 1.99, 2.0**62, 1e19, 1e30]


def only(value):
    """Zero but where ``Adds`` adds: elsewhere the sum of the states would be reported."""
    x = torch.zeros(2, 3, dtype=torch.float64)
    x[1, 2] = value
    return x


def followed(error, again):
    """The format that the message names, which must get past the failing step; None, where it must say so."""
    named = NAMED.search(str(error))
    if named is None:
        assert "no fixed-point format holds such values" in str(error) and error.advised is None
        return None
    better = FixedPoint(int(named[1]), int(named[2]))
    assert error.advised == better
    again(better)
    return better


@pytest.mark.parametrize(
    "scheme",
    [revstep.Leapfrog(), revstep.Midpoint(), revstep.MidpointBlend(a=-1.5), revstep.Blend()],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_layers_advice_is_enough(fmt, scheme):
    """The states before are as large as they may be: the sum is larger than the increment reported."""
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
    """The mutant: only the increment is looked at, as before; 2 cur - prev then leaves the advised format."""
    fmt, scheme = FixedPoint(64, 3), revstep.Leapfrog()
    edge = only(0.999 * fmt.limit)

    def call(state):
        revstep.ReversibleStack([Adds(1.9 * fmt.limit).double()], scheme, state=state)((-edge, edge))

    assert followed(raised(lambda: call(fmt)), call)
    unknown = property(lambda self: (), lambda self, value: None)
    monkeypatch.setattr(Audit, "coefficients", unknown, raising=False)
    with pytest.raises(StateOverflowError):
        followed(raised(lambda: call(fmt)), call)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_a_primitives_advice_is_enough(fmt, inverse):
    for value in excesses(fmt):
        for edge in (0.0, 0.999 * fmt.limit):

            def call(state, value=value, edge=edge):
                stepped(
                    value * (-1 if inverse else 1),
                    -edge,
                    edge * (-1 if inverse else 1),
                    fmt=state,
                    inverse=inverse,
                )

            followed(raised(lambda call=call: call(fmt)), call)


@pytest.mark.parametrize("fmt", FORMATS, ids=str)
def test_an_inputs_advice_is_enough(fmt):
    for value in excesses(fmt):

        def call(state, value=value):
            x = torch.zeros(3, 4, dtype=torch.float64)
            x[1, 2] = -value
            revstep.ReversibleStack([Adds().double()], revstep.Midpoint(), state=state)(x)

        followed(raised(lambda call=call: call(fmt)), call)


# ---- other errors of the same kind: what they advise can be done where they are raised ----


class Inner(nn.Module):
    """A block that differentiates inside its own forward pass."""

    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        y = self.linear(x)
        return torch.autograd.grad(y.square().sum(), x, create_graph=True)[0] * 0.1 if x.requires_grad else y


def test_a_layer_that_must_be_stored_is_stored_as_the_message_says():
    """``keep`` counts from the last layer, so one is not enough for the last but one, as the message says."""
    x = torch.randn(3, 4, requires_grad=True)
    blocks = [nn.Linear(4, 4), Inner(), nn.Linear(4, 4)]
    message = r"layer 1 differentiates inside.*counts layers from the last one"
    for keep in (0, 1):
        with pytest.raises(revstep.UnsupportedError, match=message):
            revstep.ReversibleStack(blocks, revstep.Blend(), keep=keep)(x).sum().backward()
    revstep.ReversibleStack(blocks, revstep.Blend(), keep=2)(x).sum().backward()
    assert x.grad is not None


NO_STATES = [torch.int16, torch.uint8, torch.bool, torch.float16, torch.bfloat16, torch.complex64]


@pytest.mark.parametrize("dtype", NO_STATES, ids=str)
def test_states_of_a_dtype_that_holds_none(dtype):
    """The caller never wrote FixedPoint(bits=16): the message speaks of states, and what it says works."""
    x = torch.ones(3).to(dtype)
    message = rf"states are {dtype}, expected one of .*FixedPoint\(\)\.encode\(x\)\[1\]"
    with pytest.raises(revstep.ConfigError, match=message):
        revstep.Midpoint().step(x, x, torch.zeros(3))
    state = FixedPoint().encode(torch.ones(3))[1]
    revstep.Midpoint().step(state, state, torch.zeros(3))


def test_states_of_another_format_are_encoded_as_the_message_says():
    x, fmt = torch.ones(3), FixedPoint()
    with pytest.raises(revstep.ConfigError, match=r"encode them with state\.encode\(x\)\[1\]"):
        revstep.Midpoint().step(x, x, x, state=fmt)
    states = [fmt.encode(x)[1] for _ in range(2)]
    assert fmt.decode(revstep.Midpoint().step(*states, x, state=fmt), torch.float32).tolist() == [2.0] * 3


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: revstep.Blend(c=1e-3), "Blend c = 0.001"),
        (lambda: revstep.BDIA(c=1e-3), "c = 0.001"),
        (lambda: revstep.MidpointBlend(a=[0.5, 1e-4]), "0.0001"),
    ],
)
def test_a_coefficient_is_called_by_the_callers_name(make, name):
    with pytest.raises(revstep.ConfigError, match=r"is the weight alpha of a step: .*choose") as caught:
        make()
    assert name in str(caught.value)
