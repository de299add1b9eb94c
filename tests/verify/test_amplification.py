"""When float states are enough: the amplification measured in float64 foretells other formats, the formula
bounds it, and wrong rules are found out.
"""

import dataclasses
import math
import warnings

import pytest
import torch
from torch import nn

import revstep
from revstep import verify
from revstep.verify._checks import unit_roundoff

WIDTH = 16
#: The rule is used with a margin of ten.
MARGIN = 10.0


class Layer(nn.Module):
    """x A^T or, curved, tanh(x A^T) A; Lipschitz constant 1."""

    def __init__(self, kind):
        super().__init__()
        b = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        a = {"oscillating": b - b.T, "growing": b + b.T, "network": b}[kind]
        self.a, self.curved = nn.Parameter((a / torch.linalg.matrix_norm(a, 2)).float()), kind == "network"

    def forward(self, x):
        y = x @ self.a.T
        return torch.tanh(y) @ self.a if self.curved else y


def stack(kind, scheme, depth):
    blocks = [(Layer(kind), Layer(kind)) if scheme.halves == 2 else Layer(kind) for _ in range(depth)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return revstep.ReversibleStack(blocks, scheme, state=revstep.Float(max_error=math.inf))


X = torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(4))
SCHEMES = [
    revstep.Midpoint(h=0.1),
    revstep.Hamiltonian(h=0.1),
    revstep.Leapfrog(h=0.1),
    revstep.Blend(c=0.9, h=0.1),
    revstep.Blend(c=0.5, h=0.1),
]
CASES = [
    (kind, scheme, depth)
    for kind in ("oscillating", "growing", "network")
    for scheme in SCHEMES
    for depth in (6, 16, 48)
]


def foretold(rule, cases=CASES):
    """Cases in which float32 is off by more than ten times what the rule says, or by less than a tenth, where
    anything is left.
    """
    wrong = []
    for kind, scheme, depth in cases:
        s = stack(kind, scheme, depth)
        said, found = rule(s), max(verify.drift(s, X))
        if (said < 0.1 or found < 0.1) and not said / MARGIN <= found <= said * MARGIN:
            wrong.append((kind, str(scheme), depth, said, found))
    return wrong


def test_float64_foretells_float32():
    assert foretold(lambda s: verify.amplification(s, X).error(torch.float32)) == []


@pytest.mark.parametrize(
    "rule",
    [
        lambda s: s.steps * unit_roundoff(torch.float32),  # blind to alpha and to the blocks
        # Blind to the blocks.
        lambda s: s.steps * unit_roundoff(torch.float32) * s.scheme.amplification(s.steps),
        lambda s: verify.amplification(s, X).error(torch.bfloat16),  # of another precision
    ],
    ids=["steps", "steps and alpha", "bfloat16"],
)
def test_a_rule_that_leaves_something_out_is_rejected(rule):
    assert len(foretold(rule)) > 3


@pytest.mark.parametrize("kind, scheme, depth", CASES, ids=lambda v: str(v))
def test_narrower_blocks_stay_below_the_rule(kind, scheme, depth):
    """An upper estimate: a state that is off by less than bfloat16's grid is mostly rounded to the same block
    input.
    """
    s = stack(kind, scheme, depth)
    said = verify.amplification(s, X).error(torch.float32, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = max(verify.drift(s, X))
    assert found <= said * MARGIN or said > 0.1


def bounded(bound):
    """Cases in which the rebuilt start is off by more than the bound."""
    wrong = []
    for kind, scheme, depth in CASES:
        if scheme.name == "leapfrog":
            continue
        s = stack(kind, scheme, depth)
        largest = max(float(v.norm()) for v in s.states(X)) / float(X.norm())
        found = verify.drift(s, X)[0]
        if found > bound(scheme, s.steps) * largest:
            wrong.append((kind, str(scheme), depth, found))
    return wrong


def test_the_formula_bounds_the_error():
    assert bounded(lambda scheme, steps: verify.float_bound(scheme, steps, 1.0)) == []


@pytest.mark.parametrize(
    "broken",
    [
        lambda scheme, steps: verify.float_bound(revstep.Midpoint(h=0.1), steps, 1.0),
        lambda scheme, steps: 2.0**-24 * steps,
    ],
)
def test_a_formula_without_alpha_or_without_the_blocks_bounds_nothing(broken):
    assert bounded(broken)


@pytest.mark.parametrize(
    "scheme",
    [
        revstep.Leapfrog(),
        revstep.MidpointBlend(a=-0.5),
        revstep.Hamiltonian(a=0.5),
        revstep.Blend(c=[0.5, 0.25] * 4),
        revstep.Blend(c=[0.5] * 8),  # whose gammas differ
    ],
)
def test_the_formula_is_refused_where_its_proof_does_not_hold(scheme):
    with pytest.raises(revstep.ConfigError, match="float_bound needs"):
        verify.float_bound(scheme, 8, 1.0)


def test_the_verdict():
    found = verify.amplification(stack("network", revstep.Midpoint(h=0.1), 16), X)
    assert found.steps == 16 and found.enough() and not found.enough(torch.float32, torch.bfloat16)
    assert found.error(torch.float32, torch.float32) == found.error()
    worse = verify.amplification(stack("network", revstep.Blend(c=0.25), 16), X)
    assert not worse.enough() and worse.factor > 1e6
    assert not dataclasses.replace(found, factor=math.inf).enough(torch.float64)


def test_the_stack_is_left_as_it_was():
    s = stack("network", revstep.Midpoint(h=0.1), 6)
    generator = torch.get_rng_state()
    verify.amplification(s, X)
    assert (
        s.state == revstep.Float(max_error=math.inf)
        and next(s.parameters()).dtype == torch.float32
        and torch.equal(generator, torch.get_rng_state())
    )
