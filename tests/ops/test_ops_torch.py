"""The operators as torch citizens: opcheck, gradients, fake tensors, torch.compile."""

import kernel_checks as checks
import pytest
import torch

from revstep import ops

COEF = (0.5, 0.5, 0.75)


def _arguments(name: str, state: torch.dtype):
    """Finite operands (opcheck compares outputs, and no NaN equals itself), float ones with gradients."""
    g = torch.Generator().manual_seed(0)
    prev, cur = (
        torch.randn(6, 8, generator=g, dtype=torch.float64)
        .mul(2.0 ** (0 if state.is_floating_point else 16))
        .to(state)
        for _ in range(2)
    )
    f = torch.randn(6, 8, generator=g).requires_grad_()
    if state.is_floating_point:
        prev, cur = prev.requires_grad_(), cur.requires_grad_()
    frac = checks.FRAC.get(state, 0)
    if name == "step":
        return prev, cur, f, *COEF, frac, torch.bfloat16
    if name == "inverse":
        with torch.no_grad():
            _, nxt, carry, _ = ops.step(prev, cur, f, *COEF, frac, None)
        return nxt.requires_grad_(state.is_floating_point), cur, f, carry, *COEF, frac, torch.float32
    return {
        "encode": (f, state, frac, torch.float16),
        "decode": (prev, frac, torch.bfloat16),
        "checksum": (prev.detach(),),
    }[name]


@pytest.mark.parametrize("state", (torch.int32, torch.float64), ids=str)
@pytest.mark.parametrize("name", ("step", "inverse", "encode", "decode", "checksum"))
def test_opcheck(name, state):
    torch.library.opcheck(getattr(torch.ops.revstep, name).default, _arguments(name, state))


@pytest.mark.parametrize("state", checks.STATES, ids=str)
@pytest.mark.parametrize("name", ("step", "inverse", "encode", "decode", "checksum"))
def test_fake_kernels_promise_what_real_ones_give(name, state):
    from torch._subclasses.fake_tensor import FakeTensorMode

    arguments = _arguments(name, state)
    real = getattr(ops, name)(*arguments)
    with FakeTensorMode() as mode:
        fake = getattr(ops, name)(
            *(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments)
        )
    for a, b in zip(*((x if isinstance(x, tuple) else (x,)) for x in (real, fake)), strict=True):
        assert (a.shape, a.dtype, a.device, a.stride()) == (b.shape, b.dtype, b.device, b.stride())


@pytest.mark.parametrize("view", (None, torch.float64), ids=str)
@pytest.mark.parametrize("c", [(1.0, 0.0, 0.5), (-1.0, 2.0, 0.3), (0.7, 0.3, -1.3), (2.0, 0.0, 1.0)], ids=str)
def test_float_gradients(c, view):
    g = torch.Generator().manual_seed(1)
    prev, cur, f = (torch.randn(3, 4, generator=g, dtype=torch.float64, requires_grad=True) for _ in range(3))
    carry = torch.empty((0, 0), dtype=torch.int32)
    outputs = slice(0, 2) if view else slice(1, 2)
    assert torch.autograd.gradcheck(lambda p, q, h: ops.step(p, q, h, *c, 0, view)[outputs], (prev, cur, f))
    assert torch.autograd.gradcheck(
        lambda n, q, h: ops.inverse(n, q, h, carry, *c, 0, view)[outputs], (prev, cur, f)
    )
    assert torch.autograd.gradgradcheck(lambda p, q, h: ops.step(p, q, h, *c, 0, view)[1], (prev, cur, f))
    assert torch.autograd.gradcheck(lambda x: ops.encode(x, torch.float64, 0, view)[outputs], (f,))
    assert torch.autograd.gradcheck(lambda x: ops.decode(x, 0, torch.float64), (prev,))


def test_gradcheck_rejects_a_wrong_factor(monkeypatch):
    from revstep.ops import _registration

    monkeypatch.setattr(
        _registration,
        "_scaled",
        lambda g, factor, dtype: None if g is None else (g * factor * 1.01).to(dtype),
    )
    f = torch.randn(4, dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(4, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda h: ops.step(zero, None, h, 1.0, 0.0, 0.5, 0, None)[1], (f,))


@pytest.mark.parametrize("value", checks.VALUES, ids=str)
@pytest.mark.parametrize("state", checks.FIXED, ids=str)
def test_straight_through_in_fixed_point(state, value):
    prev, cur, _ = checks.operands((40,), state, value)
    f = torch.randn(40).to(value).requires_grad_()
    view, nxt, carry, stats = ops.step(prev, cur, f, 0.5, 0.5, -0.75, 20, value)
    assert not (nxt.requires_grad or carry.requires_grad or stats.requires_grad)
    weight = torch.randn(40).to(value)
    (grad,) = torch.autograd.grad(view, f, weight)
    assert grad.dtype == value and torch.equal(grad, (weight * -0.75).to(value))
    view = ops.inverse(nxt, cur, f, carry, 0.5, 0.5, -0.75, 20, value)[0]
    (grad,) = torch.autograd.grad(view, f, weight)
    assert torch.equal(grad, (weight * 1.5).to(value))
    (grad,) = torch.autograd.grad(ops.encode(f, state, 20, value)[0], f, weight)
    assert torch.equal(grad, weight)


def test_a_view_and_a_float_state_share_one_gradient():
    prev = torch.randn(9, dtype=torch.float64, requires_grad=True)
    f = torch.randn(9, requires_grad=True)
    view, nxt, _, _ = ops.step(prev, None, f, -1.0, 0.0, 0.5, 0, torch.bfloat16)
    a, b = torch.randn(9), torch.randn(9)
    grads = torch.autograd.grad([view, nxt], [prev, f], [a.bfloat16(), b.double()])
    total = a.bfloat16() + b.double()
    assert torch.equal(grads[0], -total) and torch.equal(grads[1], (0.5 * total).float())


def test_compiled_chain_has_the_same_bits():
    def chain(x, f):
        _, prev, _ = ops.encode(x, torch.int32, 20, None)
        view, nxt, carry, _ = ops.step(prev, prev, f, 0.5, 0.5, 1.0, 20, torch.float32)
        _, back, _ = ops.inverse(nxt, prev, f, carry, 0.5, 0.5, 1.0, 20, None)
        return torch.sin(view), nxt, back, ops.checksum(back), ops.decode(back, 20, torch.bfloat16)

    x, f = torch.randn(5, 33), torch.randn(5, 33)
    for a, b in zip(torch.compile(chain, fullgraph=True, backend="aot_eager")(x, f), chain(x, f)):
        assert checks.same(a, b)


def test_compiled_gradients_are_eager_gradients():
    def loss(x, f):
        view, state, _ = ops.encode(x, torch.int32, 20, torch.float32)
        return (ops.step(state, state, f * view, 1.0, 0.0, 0.5, 20, torch.float32)[0] ** 2).sum()

    x, f = torch.randn(40, requires_grad=True), torch.randn(40, requires_grad=True)
    compiled = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x, f), (x, f))
    eager = torch.autograd.grad(loss(x, f), (x, f))
    assert all(torch.equal(a, b) for a, b in zip(compiled, eager))
    assert float(eager[0].abs().sum()) > 0
