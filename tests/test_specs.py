"""Schemes and state formats as strings, there and back."""

import pytest
import torch

import revstep
from revstep._specs import parse_scheme, parse_state, scheme_text, state_text
from revstep.errors import ConfigError


def test_scheme_strings():
    assert parse_scheme("midpoint_blend:a=0.5/1.5,seed=3").options == {"a": [0.5, 1.5], "seed": 3}
    assert parse_scheme("midpoint-blend").name == "midpoint_blend"
    made = parse_scheme("blend:c=0.5,h=2").make()
    assert (made.c, made.h) == (0.5, 2.0)
    with pytest.raises(
        ConfigError,
        match=r"did you mean 'midpoint'.*plain, checkpoint, bdia, blend, hamiltonian, leapfrog, midpoint",
    ):
        parse_scheme("midpont").make()
    with pytest.raises(ConfigError, match=r"'k'.*c, h"):
        parse_scheme("blend:k=3").make()


def test_state_strings():
    fixed = parse_state("fixed32:18").make()
    assert (fixed.bits, fixed.frac_bits, fixed.on_nonfinite) == (32, 18, "raise")
    assert parse_state("fixed64").make(on_nonfinite="propagate").on_nonfinite == "propagate"
    assert parse_state("float64").make().dtype == torch.float64
    with pytest.raises(ConfigError):
        parse_state("fixed32:40").make()


def spelled():
    yield from (cls() for cls in revstep.schemes.available().values())
    yield from (
        revstep.Blend(c=0.125),
        revstep.Blend(c=-0.5, h=0.3),
        revstep.Hamiltonian(a=0.75),
        revstep.MidpointBlend(seed=3),
    )
    yield from (
        revstep.MidpointBlend(a=0.5),
        revstep.MidpointBlend(a=[0.5, 1.5]),
        revstep.MidpointBlend(a=[0.5]),
    )


@pytest.mark.parametrize("scheme", list(spelled()), ids=str)
def test_a_scheme_comes_back_from_its_string(scheme):
    assert parse_scheme(scheme_text(scheme)).make() == scheme


@pytest.mark.parametrize(
    "state",
    [
        revstep.FixedPoint(),
        revstep.FixedPoint(32, 12),
        revstep.FixedPoint(64, 40),
        revstep.Float(),
        revstep.Float(torch.float64),
    ],
    ids=str,
)
def test_a_state_comes_back_from_its_string(state):
    assert parse_state(state_text(state)).make() == state


def test_a_fraction_is_told_from_a_list():
    with pytest.raises(ConfigError, match=r"1/16 is read as two entries.*write the fraction as c=0.0625"):
        parse_scheme("blend:c=1/16")
    assert parse_scheme("blend:c=1/1").options == {"c": [1, 1]}
