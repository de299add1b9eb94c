"""A bound step is the operator's: the same bits in every output, and operands of another kind are refused."""

import pytest
import torch

from revstep import ops
from revstep.errors import ConfigError

CASES = [
    (torch.int64, 40, (1.0, 0.0, 0.3)),
    (torch.int64, 40, (0.5, 0.5, 0.25)),
    (torch.int32, 20, (-1.0, 2.0, 0.1)),
    (torch.float64, 0, (1.0, 0.5, 0.1)),
]


def _operands(dtype, frac_bits, value_dtype, shape=(5, 7)):
    g = torch.Generator().manual_seed(0)
    states = [torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(2)]
    if not dtype.is_floating_point:
        states = [(s * 2.0**frac_bits).to(dtype) for s in states]
    return *states, torch.randn(shape, generator=g, dtype=torch.float64).to(value_dtype)


@pytest.mark.parametrize("view_dtype", [None, torch.float32])
@pytest.mark.parametrize("value_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype, frac_bits, c", CASES)
def test_bits_are_those_of_the_operators(dtype, frac_bits, c, value_dtype, view_dtype):
    prev, cur, f = _operands(dtype, frac_bits, value_dtype)
    bound = ops.BoundStep(prev, f, c, frac_bits, view_dtype)
    stats = torch.zeros((2, 4), dtype=torch.int64)
    view, out, carry = bound.step(prev, cur, f.t().contiguous().t(), stats.data_ptr())  # of any strides
    expected = ops.step(prev, cur, f, *c, frac_bits, view_dtype)
    assert torch.equal(out, expected[1]) and torch.equal(stats[0], expected[3])
    assert torch.equal(carry, expected[2])
    assert (view is None) if view_dtype is None else torch.equal(view, expected[0])
    view, back = bound.inverse(out, cur, f, carry, stats.data_ptr() + 32)
    expected = ops.inverse(out, cur, f, carry, *c, frac_bits, view_dtype)
    assert torch.equal(back, expected[1]) and torch.equal(stats[1], expected[2])
    assert (view is None) if view_dtype is None else torch.equal(view, expected[0])
    if not dtype.is_floating_point:
        assert torch.equal(back, prev)


def test_other_operands_are_refused():
    prev, cur, f = _operands(torch.int64, 40, torch.float32)
    bound = ops.BoundStep(prev, f, (0.5, 0.5, 1.0), 40, torch.float32)
    stats = torch.zeros(4, dtype=torch.int64)
    at = stats.data_ptr()
    wrong = (
        (prev[:3], cur, f), (prev, cur[:3], f), (prev, cur, f[:3]), (prev, cur, f.double()),
        (prev.int(), cur, f), (prev, cur.int(), f), (prev, cur, f.to("meta")),
    )  # fmt: skip
    for operands in wrong:
        with pytest.raises(ConfigError, match="bind anew"):
            bound.step(*operands, at)
    with pytest.raises(ConfigError, match="carry"):
        bound.inverse(prev, cur, f, torch.zeros((0, 0), dtype=torch.int32), at)
    with pytest.raises(ConfigError, match="not a multiple"):
        ops.BoundStep(prev, f, (0.3, 0.5, 1.0), 40, None)
    with pytest.raises(ConfigError, match="CPU"):
        ops.BoundStep(prev.to("meta"), f.to("meta"), (1.0, 0.0, 1.0), 40, None)
