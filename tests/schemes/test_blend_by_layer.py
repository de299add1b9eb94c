"""Blend with a c of its own in every layer: what its coefficients promise, and that its states come back to
the bit.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import revstep
from revstep import Blend, ConfigError, FixedPoint, Float, verify
from revstep._specs import parse_scheme, scheme_text
from revstep_lab.verify import example_blocks, example_input

pytestmark = pytest.mark.filterwarnings("ignore::revstep.AmplificationWarning")

CS = (0.5, -0.25, 2.0**-8, 0.125, -0.5, 0.3)
WEIGHTS = (1.0, 0.9, 1.1, 1.25, 1.0, 0.75)


class Gives(nn.Module):
    """A block whose increment is one number, whatever it reads."""

    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(value, dtype=torch.float64))

    def forward(self, x):
        return self.value + 0.0 * x


def last(scheme, increments, start):
    blocks = [Gives(f) for f in increments]
    stack = revstep.ReversibleStack(blocks, scheme, Float(torch.float64), start=start)
    with torch.no_grad():
        return float(stack(torch.zeros(1, 1, dtype=torch.float64)))


@settings(max_examples=50, deadline=None)
@given(
    c=st.lists(
        st.sampled_from([s * 2.0**-b for b in range(1, 9) for s in (1, -1)] + [0.3, -0.7]),
        min_size=1,
        max_size=9,
    ),
    seed=st.integers(0, 99),
    h=st.sampled_from([1.0, 0.5]),
)
@pytest.mark.parametrize("start", ["repeat", "euler"])
def test_every_increment_ends_with_its_weight(start, c, seed, h):
    """The promise behind gamma, from the recurrence itself: p_L = p_0 + h sum_j weights_j f_j where the f_j
    read nothing.
    """
    generator = np.random.default_rng(seed)
    f, w = generator.normal(size=len(c)), generator.uniform(0.5, 1.5, size=len(c)).tolist()
    assert last(Blend(c=c, h=h, weights=w), f, start) == pytest.approx(h * float(np.dot(w, f)), abs=1e-9)
    assert last(Blend(c=c, h=h), f, start) == pytest.approx(h * float(f.sum()), abs=1e-9)


def test_with_one_c_it_is_another_scheme():
    """A mutant of gamma: 1 + c in every layer, as with one c, gives the last increments another weight."""
    f = [1.0, -2.0, 0.5]
    assert last(Blend(c=0.25), f, "repeat") != pytest.approx(sum(f), abs=1e-3)


def test_the_coefficients():
    scheme = Blend(c=[0.5, 0.25, -0.125], h=0.5, weights=[1.0, 2.0, 3.0])
    assert scheme.by_layer and not Blend().by_layer and Blend(c=[0.5]) != Blend(c=0.5)
    gammas = [1.0 / (1 - 0.25 * (1 + 0.125)), 2.0 / (1 + 0.125), 3.0]
    for j, gamma in enumerate(gammas):
        c = scheme.c[j]
        assert scheme.coefficients(j) == pytest.approx((c, 1 - c, 0.5 * gamma), rel=1e-15)
    assert scheme.euler_gamma() == pytest.approx(0.5 * gammas[0], rel=1e-15)
    for layer in (-1, 3):
        with pytest.raises(ConfigError, match=f"for layers 0 to 2, got layer {layer}"):
            scheme.coefficients(layer)
    scheme.check_depth(3)
    for depth in (2, 4):
        with pytest.raises(
            ConfigError, match=f"3 values of c for {depth} layers: give one a layer, or one number"
        ):
            scheme.check_depth(depth)


REFUSED = {
    "zero": ({"c": [0.5, 0.0]}, r"Blend c\[1\] = 0.0: expected"),
    "too large": ({"c": [0.5, 1.5]}, r"Blend c\[1\] = 1.5: expected \|c\| <= 1"),
    "too small": ({"c": [2.0**-9]}, r"c\[0\]"),
    "a word": ({"c": "half"}, r"Blend c = 'half'"),
    "nothing": ({"c": []}, r"Blend c = \[\]: expected a number, or a list"),
    "weights of one c": ({"c": 0.5, "weights": [1.0]}, r"together with a list of c"),
    "one weight": ({"c": [0.5], "weights": 2.0}, r"weights = 2.0: expected a list"),
    "weights of another length": ({"c": [0.5], "weights": [1.0, 1.0]}, r"2 weights for 1 values of c"),
    "a weight of zero": ({"c": [0.5], "weights": [0.0]}, r"weights\[0\] = 0.0: expected a finite non-zero"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        Blend(**options)


def test_a_layer_whose_increment_would_be_lost():
    with pytest.raises(ConfigError, match=r"c\[1\] = 1.0 takes the whole increment of layer 0 out"):
        Blend(c=[0.5, 1.0]).coefficients(0)


@pytest.mark.parametrize("start", ["repeat", "euler"])
@pytest.mark.parametrize("state", [FixedPoint(), FixedPoint(64)])
def test_states_and_gradients_are_exact(state, start):
    """Carries of one to eight bits side by side in one stack."""
    blocks = example_blocks(len(CS), dropout=0.1, scale=2.0)
    stack = revstep.ReversibleStack(blocks, Blend(c=CS, weights=WEIGHTS), state, start=start)
    x = example_input(32, 2, 8)
    assert verify.reconstruction(stack, x).ok and verify.gradients(stack, x).ok
    stack(x).square().mean().backward()
    assert stack.report.exact and stack.report.matched == len(CS)


def test_bits_kept_are_those_of_the_layers():
    """The first layer's are left out by start "euler": its c has no effect."""
    x = example_input(32, 2, 8)
    outputs = []
    for c in (CS, (2.0**-8, *CS[1:])):
        for start in ("repeat", "euler"):
            stack = revstep.ReversibleStack(example_blocks(len(CS), dropout=0.0), Blend(c=c), start=start)
            with torch.no_grad():
                outputs.append(stack(x))
    grid = 2.0**-20
    assert all(float((y - outputs[0]).abs().max()) <= 64 * grid for y in outputs[1:])


@pytest.mark.parametrize(
    "scheme", [Blend(c=CS, weights=WEIGHTS), Blend(c=[0.5]), Blend(c=[2.0**-8] * 3, h=0.5)]
)
def test_as_text(scheme):
    assert parse_scheme(scheme_text(scheme)).make() == scheme


def test_printed_on_one_line():
    assert repr(Blend()) == "Blend(c=0.25, h=1.0)" and repr(Blend(c=[0.5])) == "Blend(c=(0.5,), h=1.0)"
    long = Blend(c=[0.25] * 30, weights=[1.0] * 30)
    assert repr(long) == "Blend(c=<30 by layer, -log2|c| 2.00 on average>, h=1.0, weights by layer)"
