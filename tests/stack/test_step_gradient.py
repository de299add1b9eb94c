"""The gradient of one step: plain products bit for bit, in one pass where that is allowed."""

import itertools

import pytest
import torch

from revstep import ops
from revstep._recurrence import walk
from revstep.schemes._base import Coefficients, RowCoefficients

CHOICE = torch.tensor([0, 1, 1, 0, 1], dtype=torch.uint8)
ONE = [
    Coefficients(1.0, 0.0, 1.0),
    Coefficients(-1.0, 2.0, 0.25),
    Coefficients(0.25, 0.75, 1.25),
    Coefficients(ops.snap(0.7), ops.snap(0.3), 1.0),
    Coefficients(0.5, 1.0, 0.0),
]
ROWS = [
    RowCoefficients(CHOICE, Coefficients(0.5, 0.5, 1.5), Coefficients(-0.5, 1.5, 0.5)),
    RowCoefficients(CHOICE, Coefficients(1.0, 0.0, 1.0), Coefficients(1.0, 2.0, 1.0)),
    RowCoefficients(CHOICE, Coefficients(0.5, 0.0, 0.0), Coefficients(-1.0, 0.0, 0.7)),
]  # fmt: skip
DTYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float32),
    (torch.float64, torch.float64),
]


def plain(g, c, needs, value_dtype):
    """The definition, one product at a time."""
    out = []
    for i, dtype in enumerate((g.dtype, g.dtype, value_dtype)):
        sets = [c] if isinstance(c, Coefficients) else [c.first, c.second]
        if not needs[i] or all(s[i] == 0.0 for s in sets):
            out.append(None)
            continue
        products = [g * s[i] if s[i] else torch.zeros_like(g) for s in sets]
        chosen = (
            products[0]
            if len(sets) == 1
            else torch.stack([products[w][row] for row, w in enumerate(CHOICE.tolist())])
        )
        out.append(chosen.to(dtype))
    return out


def assert_plain(g, c, needs, value_dtype):
    got = walk.gradients(g, c, needs, value_dtype)
    for name, a, b in zip(("prev", "cur", "f"), got, plain(g, c, needs, value_dtype)):
        assert (a is None) == (b is None), f"{name}: {a} instead of {b}"
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), (
            f"the gradient of {name} is not the plain product: {c}"
        )
    return got


@pytest.mark.parametrize("g_dtype, value_dtype", DTYPES)
@pytest.mark.parametrize("c", ONE + ROWS, ids=lambda c: type(c).__name__)
def test_bits_are_those_of_plain_products(c, g_dtype, value_dtype):
    g = torch.randn(5, 7, 40).to(g_dtype)
    for needs in itertools.product((True, False), repeat=3):
        assert_plain(g, c, needs, value_dtype)
    for other in (g.transpose(1, 2), g[:, :1].expand(5, 7, 40), g[:, ::2]):
        assert_plain(other, c, (True, True, True), value_dtype)


def test_a_factor_of_one_hands_the_gradient_on():
    """To the states; the block gets memory of its own, into which its backward may write."""
    g = torch.randn(5, 8)
    got = walk.gradients(g, Coefficients(1.0, 0.0, 1.0), (True, True, True), torch.float32)
    assert got[0] is g and got[1] is None and torch.equal(got[2], g) and got[2].data_ptr() != g.data_ptr()
    assert walk.gradients(g, ROWS[1], (True, True, True), torch.float32)[0] is g


@pytest.mark.parametrize("c", [ONE[2], ROWS[0]], ids=["one", "rows"])
def test_one_pass_writes_them_all(c, monkeypatch):
    calls = []
    real = ops.scale
    monkeypatch.setattr(ops, "scale", lambda *args: calls.append(args[0]) or real(*args))
    g = torch.randn(5, 8)
    assert_plain(g, c, (True, True, True), torch.bfloat16)
    assert len(calls) == 1 and calls[0] is g


@pytest.mark.parametrize("c", [ONE[2], ROWS[0]], ids=["one", "rows"])
def test_a_recorded_gradient_can_be_differentiated(c):
    g = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: walk.gradients(x, c, (True, True, True), torch.float64), g)


def test_the_comparison_can_fail(monkeypatch):
    """Factors in another order, and a product with the other set's factor, are noticed."""
    g = torch.randn(5, 8)
    real = ops.scale

    def wrong(g, factors, last, choice=None, second=None):
        return real(g, factors[::-1], last) if choice is None else real(g, second, last, choice, factors)

    monkeypatch.setattr(ops, "scale", wrong)
    for c in (ONE[2], ROWS[0]):
        with pytest.raises(AssertionError, match="is not the plain product"):
            assert_plain(g, c, (True, True, True), torch.float32)
