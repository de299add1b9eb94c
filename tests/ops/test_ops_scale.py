"""scale, with and without rows: torch's own products, bit for bit, and citizens of torch."""

import kernel_checks as checks
import pytest
import scale_checks
import torch

from revstep import ops
from revstep.errors import ConfigError
from revstep.ops import _direct, _kernels, _registration

CHOICE = torch.tensor([0, 1, 1, 0, 1, 0, 1], dtype=torch.uint8)


@pytest.mark.parametrize("last", checks.VALUES, ids=str)
@pytest.mark.parametrize("value", checks.VALUES, ids=str)
def test_every_level_has_torchs_bits(value, last):
    scale_checks.check(checks.floats((1061,), value, 1), last, checks.launches())
    for length in (1, 33, 127, 300):
        scale_checks.check_rows(
            checks.floats((len(CHOICE), length), value, length), CHOICE, last, checks.launches()[:-2]
        )
    scale_checks.check_rows(
        checks.floats((len(CHOICE), 5000), value, 3), CHOICE, last, checks.launches()[-2:]
    )


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (3, 0), (40000,), (3, 5, 7)], ids=str)
def test_every_rank_and_empty_tensors(shape):
    threads = 2 if shape == (40000,) else 1  # the only one that is shared out
    for value in checks.VALUES[:1] if threads > 1 else checks.VALUES:
        g = checks.floats(shape, value, 4)
        scale_checks.check(g, value, ((-1, threads),))
        if shape:
            scale_checks.check_rows(g, (torch.arange(shape[0]) % 2).to(torch.uint8), value, ((-1, threads),))


def test_memory_order_does_not_matter():
    g = checks.floats((6, 7, 50), torch.float32, 5)
    for other in (g.transpose(0, 2), g[:, ::2], g[:1].expand(6, 7, 50), torch._neg_view(g)):
        for got, wanted in zip(
            ops.scale(other, [0.5, 3.0], torch.bfloat16),
            scale_checks.expected(other, [0.5, 3.0], torch.bfloat16),
        ):
            assert got.is_contiguous() and checks.same(got, wanted.contiguous())


def test_operands_stay_as_they_were():
    g = torch.randn(7, 90)
    before, choice = g.clone(), CHOICE.clone()
    for out in (
        *ops.scale(g, [1.0, 2.0], torch.float32),
        *ops.scale(g, [1.0, 0.0], torch.float32, CHOICE, [1.0, 2.0]),
    ):
        out.fill_(7)
    assert torch.equal(g, before) and torch.equal(CHOICE, choice)


@pytest.mark.parametrize("name", scale_checks.battery())
def test_battery(name, monkeypatch):
    """The properties hold, and are seen to fail where the kernel gets its factors in another order."""
    scale_checks.battery()[name]()
    monkeypatch.setattr(_direct, "scale", lambda *_: None)
    real = _kernels._scale
    monkeypatch.setattr(
        _kernels,
        "_scale",
        lambda g, choice, first, second, last: real(g, choice, first[::-1], second[::-1], last),
    )
    with pytest.raises(AssertionError, match="differs from torch's"):
        scale_checks.battery()[name]()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda g: ops.scale(g, [], torch.float32), "0 factors are given, expected 1 to 3"),
        (lambda g: ops.scale(g, [1.0] * 4, torch.float32), "4 factors are given"),
        (lambda g: ops.scale(g.int(), [1.0], torch.float32), "g has dtype torch.int32"),
        (lambda g: ops.scale(g, [1.0], torch.int32), "the last product has dtype torch.int32"),
        (
            lambda g: ops.scale(g, [1.0], torch.float32, CHOICE, [1.0, 2.0]),
            "1 factors are given, second has 2",
        ),
        (
            lambda g: ops.scale(g, [1.0], torch.float32, CHOICE[1:], [2.0]),
            r"choice has shape \(6,\), expected \(7,\): one value for each row of g",
        ),
        (lambda g: ops.scale(g, [1.0], torch.float32, CHOICE.int(), [2.0]), "choice has dtype torch.int32"),
        (
            lambda g: ops.scale(g, [1.0], torch.float32, CHOICE * 2, [2.0]),
            "choice has a value 2, expected 0 or 1",
        ),
        (lambda g: ops.scale(g[0, 0], [1.0], torch.float32, CHOICE, [2.0]), "g has no rows"),
    ],
)
def test_misuse(call, message):
    with pytest.raises(ConfigError, match=message):
        call(torch.randn(7, 3))


def test_the_extension_checks_what_it_is_given():
    g, out = torch.randn(8), torch.empty(8)
    code, at = _kernels._C.dtypes(), out.data_ptr()
    for into, factors, value_type, message in (
        ([], [], "float32", "count is 0"),
        ([at], [0.5], "int32", "dtypes"),
        ([0], [0.5], "float32", "null"),
        ([at], [0.5, 1.0], "float32", "as many outputs as factors"),
        ([at] * 4, [0.5] * 4, "float32", "at most 3"),
    ):
        with pytest.raises(RuntimeError, match=message):
            given = _kernels._C.ScaleArgs(
                n=8,
                g=g.data_ptr(),
                out=into,
                factors=factors,
                value_type=code[value_type],
                last_type=code["float32"],
            )
            _kernels._C.scale(given, threads=1, isa=-1)


@pytest.mark.parametrize("dtype", checks.VALUES, ids=str)
def test_opcheck(dtype):
    operator = torch.ops.revstep.scale.default
    g = torch.randn(7, 9).to(dtype)
    torch.library.opcheck(operator, (g, [0.5, 0.0, 2.0], torch.bfloat16, None, None))
    torch.library.opcheck(operator, (g, [0.5, 0.0], torch.float32, CHOICE, [1.0, 2.0]))
    wide = torch.randn(7, 9, dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(operator, (wide, [0.5, 0.0, 2.0], torch.float64, None, None))
    torch.library.opcheck(operator, (wide, [0.5, 0.0], torch.float64, CHOICE, [1.0, 2.0]))


def test_gradients(monkeypatch):
    g = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    some = torch.tensor([1.0, 0.0, 2.0])

    def one(x):
        return [s * y for s, y in zip(some, ops.scale(x, [0.5, -1.0, 3.0], torch.float64))]

    def rows(x):
        return ops.scale(x, [0.5, 0.0], torch.float64, CHOICE, [1.0, 2.0])

    for function in (one, rows):
        assert torch.autograd.gradcheck(function, g) and torch.autograd.gradgradcheck(function, g)
    monkeypatch.setattr(
        _registration, "_scaled", lambda g, factor, dtype: None if g is None else g * factor * 1.01
    )
    for function in (one, rows):
        with pytest.raises(RuntimeError, match="Jacobian mismatch"):
            torch.autograd.gradcheck(function, g)


def test_a_compiled_product_is_the_eager_one():
    def both(g):
        return ops.scale(torch.sin(g), [0.3, 2.0], torch.bfloat16) + ops.scale(
            g, [0.3], torch.float32, CHOICE, [0.0]
        )

    g = torch.randn(7, 40)
    for a, b in zip(torch.compile(both, fullgraph=True, backend="aot_eager")(g), both(g)):
        assert checks.same(a, b)
