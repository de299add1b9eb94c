"""Hypothesis: any bits in, the inverse returns the same bits or the step said why not. Judged by Python
integers.
"""

import kernel_checks as checks
import pytest
import scalar_oracle as oracle
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from revstep import ops

alphas = st.one_of(
    st.integers(2**16, 2**25),
    st.sampled_from([2**k for k in range(16, 26)]),
    st.sampled_from([2**k + d for k in range(17, 25) for d in (-1, 1)]),
).flatmap(lambda a: st.sampled_from([a * 2.0**-24, -a * 2.0**-24]))
betas = st.one_of(
    st.sampled_from([0.0, 1.0, 2.0, -4.0, 4.0]), st.integers(-(2**26), 2**26).map(lambda b: b * 2.0**-24)
)
gammas = st.one_of(st.sampled_from([1.0, 0.5, -1.0, 2.0, 0.0]), st.floats(-4, 4, allow_nan=False))


def state_elements(bits: int):
    limit = oracle.LIMIT[bits]
    distance = st.integers(0, 40)
    return st.one_of(
        st.integers(-limit, limit),
        st.integers(-(2**22), 2**22),
        distance.map(lambda d: limit - d),
        distance.map(lambda d: d - limit),
    )


def float_bits(dtype: torch.dtype):
    """Arbitrary bit patterns (NaN, Inf, subnormals ...), and patterns of ordinary numbers often enough that
    steps stay in range.
    """
    size = {torch.float64: 64, torch.float32: 32}.get(dtype, 16)
    ordinary = st.floats(-64, 64, width=size if size > 16 else 32).map(
        lambda x: int(checks.bit_pattern(torch.tensor([x], dtype=dtype))[0])
    )
    return st.one_of(ordinary, ordinary, st.integers(-(2 ** (size - 1)), 2 ** (size - 1) - 1))


def float_tensor(patterns: list[int], dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor(patterns, dtype=checks.BITS.get(dtype, torch.int64)).view(dtype)


@st.composite
def problems(draw, max_length: int = 40):
    state = draw(st.sampled_from(checks.FIXED))
    value = draw(st.sampled_from(checks.VALUES))
    n = draw(st.integers(1, max_length))
    draw_states = st.lists(state_elements(checks.width(state)), min_size=n, max_size=n)
    prev, cur = (torch.tensor(draw(draw_states), dtype=state) for _ in range(2))
    f = float_tensor(draw(st.lists(float_bits(value), min_size=n, max_size=n)), value)
    frac_bits = draw(st.integers(0, 30 if state == torch.int32 else 61))
    return prev, cur, f, (draw(alphas), draw(betas), draw(gammas)), frac_bits


@settings(max_examples=300)
@given(problems())
def test_step_agrees_with_python_integers(problem):
    checks.check_oracle(*problem)


@settings(max_examples=300)
@given(problems())
def test_no_bad_element_means_the_same_bits(problem):
    checks.check_round_trip(*problem)


@settings(max_examples=200)
@given(problems(), st.floats(0.0, 1.0))
def test_steps_kept_in_range_always_come_back(problem, part):
    """Operands small enough that nothing can overflow: the property is never vacuous."""
    prev, cur, f, c, frac_bits = problem
    f = torch.where(f.isfinite(), f, torch.zeros_like(f)).clamp(-4, 4)
    limit = oracle.LIMIT[checks.width(prev.dtype)]
    assume(4 * abs(c[2]) * 2.0**frac_bits < limit / 16)
    prev, cur = ((x.double() * part / 16).to(x.dtype) for x in (prev, cur))
    assert checks.check_round_trip(prev, cur, f, c, frac_bits)


@settings(max_examples=200)
@given(problems(max_length=8))
def test_inverse_agrees_with_python_integers(problem):
    prev, cur, f, c, frac_bits = problem
    bits, double = checks.width(prev.dtype), f.dtype == torch.float64
    _, nxt, words, _ = ops.step(prev, cur, f, *c, frac_bits, None)
    _, back, _ = ops.inverse(nxt, cur, f, words, *c, frac_bits, None)
    for i, (p, q, g) in enumerate(zip(prev.tolist(), cur.tolist(), f.double().tolist())):
        expected = oracle.step(p, q, g, *c, frac_bits, double, bits)
        if abs(expected.total) <= oracle.LIMIT[bits]:
            kept = oracle.carry(p, c[0]) if oracle.carry_bits(c[0]) else 0
            assert oracle.inverse(expected.total, q, g, kept, *c, frac_bits, double, bits) == p, (
                "the oracle does not invert itself"
            )
            assert int(back[i]) == p


@settings(max_examples=60)
@given(st.integers(2**16, 2**25), st.booleans(), st.integers(-(2**40), 2**40))
def test_carry_is_as_short_as_the_definition_allows(numerator, negative, x):
    """No image has more than ``2**bits`` members, and one bit less would not do."""
    alpha = numerator * 2.0**-24 * (-1 if negative else 1)
    bits = ops.carry_bits(alpha)
    assert bits == oracle.carry_bits(alpha)
    run = torch.arange(x, x + 600, dtype=torch.int64)
    images = [oracle.rounded(numerator * int(u)) for u in run]
    assert max(images.count(y) for y in set(images)) <= 2**bits
    # Some images have ceil(1 / |alpha|) members.
    assert bits == 0 or -(-(2**24) // numerator) > 2 ** (bits - 1)


@pytest.mark.parametrize(
    "alpha, bits",
    [
        (1.0, 0),
        (-1.3, 0),
        (2.0, 0),
        (0.7, 1),
        (0.5, 1),
        (-0.5, 1),
        (0.5 - 2.0**-24, 2),
        (0.3, 2),
        (0.25, 2),
        (0.125, 3),
        (1 / 16, 4),
        (1 / 256, 8),
    ],
)
def test_carry_bits_of_known_coefficients(alpha, bits):
    alpha = ops.snap(alpha)
    assert ops.carry_bits(alpha) == bits
    carry = ops.step(*checks.operands((1000,), torch.int32, torch.float32), alpha, 0.0, 1.0, 20, None)[2]
    assert carry.shape == ops.carry_shape(1000, bits) == ((32, bits) if bits else (0, 0))


@pytest.mark.parametrize("frac", [0, 13, 20, 30])
def test_range_int32(frac):
    checks.check_range(torch.int32, frac)


@pytest.mark.parametrize("frac", [0, 32, 61])
def test_range_int64(frac):
    checks.check_range(torch.int64, frac)


@pytest.mark.parametrize("level", range(len(checks._C.isa_levels())))
def test_every_level_against_python_integers(level):
    with checks.launched(level, 1):
        for state in checks.FIXED:
            for c in checks.COEFFICIENTS:
                checks.check_oracle(
                    *checks.operands((201,), state, torch.float32, seed=level), c, checks.FRAC[state]
                )
            checks.check_range(state, checks.FRAC[state], n=700)


def test_long_chain_comes_back():
    """300 steps up and down, general alpha: nothing is lost on the way."""
    g = torch.Generator().manual_seed(0)
    first = second = ops.encode(torch.randn(500, generator=g), torch.int32, 20, None)[1]
    c, kept, prev, cur = (ops.snap(0.7), ops.snap(0.3), 0.01), [], first, second
    for _ in range(300):
        f = torch.sin(ops.decode(cur, 20, torch.float32))
        _, nxt, carry, _ = ops.step(prev, cur, f, *c, 20, None)
        kept.append(carry)
        prev, cur = cur, nxt
    for carry in reversed(kept):
        f = torch.sin(ops.decode(prev, 20, torch.float32))
        prev, cur = ops.inverse(cur, prev, f, carry, *c, 20, None)[1], prev
    assert torch.equal(prev, first) and torch.equal(cur, second)
