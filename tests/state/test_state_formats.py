"""State formats: options, limits, rounding, and advice that really helps."""

import dataclasses
import math
import pickle
import re
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from revstep import FixedPoint, Float, ops
from revstep.errors import ConfigError
from revstep.state import StateFormat

FIXED = [FixedPoint(32, f) for f in (0, 8, 20, 30)] + [FixedPoint(64, f) for f in (0, 20, 32, 61)]
FLOATS = [Float(torch.float32), Float(torch.float64)]
TOP = {32: 2**31 - 1, 64: 2**62 - 1}
NAMED = re.compile(r"FixedPoint\(bits=(\d+), frac_bits=(\d+)\)")


def test_defaults():
    assert (FixedPoint().bits, FixedPoint().frac_bits, FixedPoint(64).frac_bits) == (32, 20, 32)
    assert FixedPoint().on_nonfinite == "raise" and FixedPoint().exact and not Float().exact
    assert (
        Float().dtype == torch.float32 and Float().limit == math.inf and Float().on_nonfinite == "propagate"
    )


BAD = {
    "bits 16": (lambda: FixedPoint(16), "FixedPoint(bits=16): expected 32 or 64"),
    "bits str": (lambda: FixedPoint("32"), "FixedPoint(bits='32'): expected 32 or 64"),
    "frac too large": (
        lambda: FixedPoint(32, 31),
        "FixedPoint(bits=32, frac_bits=31): expected an integer from 0 to 30",
    ),
    "frac too large for 64": (
        lambda: FixedPoint(64, 62),
        "FixedPoint(bits=64, frac_bits=62): expected an integer from 0 to 61",
    ),
    "frac negative": (lambda: FixedPoint(frac_bits=-1), "frac_bits=-1): expected an integer from 0 to 30"),
    "frac float": (lambda: FixedPoint(frac_bits=20.0), "frac_bits=20.0): expected an integer from 0 to 30"),
    "frac bool": (lambda: FixedPoint(frac_bits=True), "frac_bits=True): expected an integer from 0 to 30"),
    "nonfinite": (
        lambda: FixedPoint(on_nonfinite="ignore"),
        "FixedPoint(on_nonfinite='ignore'): expected 'raise' or 'propagate'",
    ),
    "half": (
        lambda: Float(torch.float16),
        "Float(dtype=torch.float16): expected torch.float32 or torch.float64",
    ),
    "integer": (
        lambda: Float(torch.int32),
        "Float(dtype=torch.int32): expected torch.float32 or torch.float64",
    ),
    "string": (lambda: Float("float32"), "Float(dtype='float32'): expected torch.float32 or torch.float64"),
}


@pytest.mark.parametrize("call, message", BAD.values(), ids=BAD)
def test_options_are_checked(call, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()


@pytest.mark.parametrize("fmt", FIXED + FLOATS, ids=str)
def test_formats_are_values(fmt):
    assert (
        isinstance(fmt, StateFormat)
        and fmt == pickle.loads(pickle.dumps(fmt))
        and hash(fmt) == hash(dataclasses.replace(fmt))
    )
    assert type(fmt).__name__ in str(fmt)
    with pytest.raises(dataclasses.FrozenInstanceError):
        fmt.dtype = torch.int8
    x = torch.linspace(-0.9, 0.8, 6)
    view, state, stats = fmt.encode(x)
    assert state.dtype == fmt.dtype and view.dtype == torch.float32 and ops.read_stats(stats)[0].bad == 0
    assert (view is state) == (fmt.dtype == torch.float32) and (fmt.view_dtype(torch.float32) is None) == (
        fmt.dtype == torch.float32
    )
    assert torch.equal(fmt.decode(state, torch.float32), view)
    assert fmt.encode(x, torch.bfloat16)[0].dtype == torch.bfloat16
    assert fmt.decode(state, fmt.dtype if not fmt.exact else torch.float64).dtype in (
        torch.float32,
        torch.float64,
    )


@pytest.mark.parametrize("fmt", FIXED, ids=str)
def test_the_limit_is_held_and_the_next_number_is_not(fmt):
    assert (
        fmt.limit == pytest.approx(TOP[fmt.bits] / 2**fmt.frac_bits, rel=1e-15)
        and fmt.grid == 2.0**-fmt.frac_bits
    )
    top = torch.tensor([TOP[fmt.bits], -TOP[fmt.bits]], dtype=torch.int64).to(fmt.dtype)
    exact = top.double() * fmt.grid  # rounds up to 2**62 for 64 bits: out of range there
    for sign in (1, -1):
        largest = (
            math.nextafter(float(2 ** (31 if fmt.bits == 32 else 62)), 0)
            if fmt.bits == 64
            else float(TOP[32])
        )
        inside, outside = sign * largest * fmt.grid, sign * (2.0 ** (31 if fmt.bits == 32 else 62)) * fmt.grid
        _, state, stats = fmt.encode(torch.tensor([inside], dtype=torch.float64))
        assert ops.read_stats(stats)[0].bad == 0 and int(state) == sign * int(largest)
        _, state, stats = fmt.encode(torch.tensor([outside], dtype=torch.float64))
        s = ops.read_stats(stats)[0]
        assert (s.bad, s.first_bad, s.largest) == (1, 0, abs(outside)) and int(state) == 0
    if fmt.bits == 32:
        assert torch.equal(fmt.encode(exact)[1], top) and torch.equal(fmt.decode(top, torch.float64), exact)


@settings(max_examples=200)
@given(
    st.sampled_from(FIXED),
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
)
def test_encode_rounds_to_the_nearest_grid_point_half_to_even(fmt, numbers):
    numbers = [math.remainder(x, fmt.limit / 4) if abs(x) > fmt.limit / 4 else x for x in numbers]
    state = fmt.encode(torch.tensor(numbers, dtype=torch.float64))[1].tolist()
    # Python rounds fractions half to even.
    assert state == [round(Fraction(x) * 2**fmt.frac_bits) for x in numbers]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("fmt", [FixedPoint(32, 0), FixedPoint(64, 0), FixedPoint(32, 1)], ids=str)
def test_ties_go_to_even(fmt, dtype):
    halves = [0.5, 1.5, 2.5, 3.5, -0.5, -1.5, -2.5, -3.5]
    x = torch.tensor(halves, dtype=dtype) * fmt.grid
    assert fmt.encode(x)[1].tolist() == [0, 2, 2, 4, 0, -2, -2, -4]


@given(st.lists(st.integers(-TOP[32], TOP[32]), min_size=1, max_size=40), st.integers(0, 30))
def test_decode_then_encode_is_the_identity_for_32_bits(elements, frac):
    fmt = FixedPoint(32, frac)
    state = torch.tensor(elements, dtype=torch.int32)
    assert torch.equal(fmt.encode(fmt.decode(state, torch.float64))[1], state)


@given(st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=40), st.integers(0, 61))
def test_decode_then_encode_is_the_identity_below_53_bits(elements, frac):
    fmt = FixedPoint(64, frac)
    state = torch.tensor(elements, dtype=torch.int64)
    assert torch.equal(fmt.encode(fmt.decode(state, torch.float64))[1], state)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=40))
def test_encode_then_decode_is_within_half_a_grid_step(numbers):
    x = torch.tensor(numbers, dtype=torch.float64)
    for fmt in (FixedPoint(), FixedPoint(64), FixedPoint(32, 8)):
        back = fmt.decode(fmt.encode(x)[1], torch.float64)
        assert float((back - x).abs().max()) <= fmt.grid / 2


@pytest.mark.parametrize("fmt", FLOATS, ids=str)
def test_float_formats_keep_their_own_bits(fmt):
    x = torch.tensor([0.0, -0.0, 1e-40, 3.0, -7e30, float("inf"), float("nan")], dtype=fmt.dtype)
    view, state, stats = fmt.encode(x)
    assert (
        view is state
        and torch.equal(state.nan_to_num(123.0), x.nan_to_num(123.0))
        and state.data_ptr() != x.data_ptr()
    )
    assert fmt.decode(state, fmt.dtype) is state
    s = ops.read_stats(stats)[0]
    assert (s.bad, s.first_bad, s.largest) == (2, 5, math.inf)


# ---- advice ----

ANY_FIXED = st.one_of(
    st.builds(FixedPoint, st.just(32), st.integers(0, 30)),
    st.builds(FixedPoint, st.just(64), st.integers(0, 61)),
)


def holds(bits: int, frac: int, value: float) -> bool:
    return round(Fraction(value) * 2**frac) <= TOP[bits]


@settings(max_examples=300)
@given(ANY_FIXED, st.floats(0.0, 60.0), st.floats(1.0, 2.0, exclude_max=True))
def test_advice_names_a_format_that_holds_the_value(fmt, exponent, mantissa):
    largest = mantissa * 2.0 ** math.floor(exponent)
    if holds(fmt.bits, fmt.frac_bits, largest):
        return  # no advice is asked for
    advice = fmt.advice(largest)
    named = NAMED.findall(advice)
    assert named or "no fixed-point format holds" in advice
    for bits, frac in named:
        better = FixedPoint(int(bits), int(frac))
        assert holds(better.bits, better.frac_bits, largest) and better.limit > fmt.limit
        assert ops.read_stats(better.encode(torch.tensor([largest], dtype=torch.float64))[2])[0].bad == 0


def test_advice_gives_up_only_where_nothing_helps():
    for exponent in range(31, 62):
        advice = FixedPoint().advice(2.0**exponent)
        assert NAMED.search(advice), f"2**{exponent} fits FixedPoint(64, 0), but: {advice}"


@pytest.mark.parametrize("largest", (math.inf, math.nan))
def test_advice_on_nan_and_inf_looks_elsewhere(largest):
    for fmt in (FixedPoint(), FixedPoint(64)):
        advice = fmt.advice(largest)
        assert not NAMED.search(advice) and "NaN or Inf" in advice and "on_nonfinite='propagate'" in advice
    assert "NaN or Inf" in Float().advice(largest)


def test_advice_says_so_when_nothing_helps():
    assert "no fixed-point format holds such values" in FixedPoint().advice(1e30)
