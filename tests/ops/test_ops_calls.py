"""Calls that go to a kernel without the dispatcher, and those that have to go through it."""

import pytest
import torch
from torch.autograd import forward_ad

from operator_calls import Count
from revstep import ConfigError, ops
from revstep.ops import _kernels, _registration


def operands(dtype=torch.int32):
    x = torch.linspace(-1, 1, 24).view(2, 12)
    state = ops.encode(x, dtype, 16, None)[1]
    return state, state.flip(0), x


def calls():
    """Every operator by name, called on plain tensors."""
    state, cur, f = operands()
    choice = torch.tensor([0, 1], dtype=torch.uint8)
    carry = ops.step(state, cur, f, 0.25, 0.75, 1.0, 16, None)[2]
    return {
        "step": lambda: ops.step(state, cur, f, 0.25, 0.75, 1.0, 16, torch.float32),
        "step of rows": lambda: ops.step(state, cur, f, 1.0, 0.0, 1.0, 16, None, choice, [0.5, 0.5, 1.0]),
        "inverse": lambda: ops.inverse(state, cur, f, carry, 0.25, 0.75, 1.0, 16, torch.float32),
        "encode": lambda: ops.encode(f, torch.int32, 16, torch.float32),
        "decode": lambda: ops.decode(state, 16, torch.float32),
        "checksum": lambda: ops.checksum(state),
        "scale": lambda: ops.scale(f, [0.5, 0.25], torch.float32),
    }


@pytest.fixture
def through(monkeypatch):
    """Whether calls pass the dispatcher, each after the other."""
    seen, plain = [], _registration._plain
    monkeypatch.setattr(_registration, "_plain", lambda *t: (seen.append(not plain(*t)), not seen[-1])[1])
    return seen


@pytest.mark.parametrize("name", calls())
def test_plain_calls_are_direct_and_give_the_same(name, through, monkeypatch):
    call = calls()[name]
    del through[:]
    direct = call()
    assert through == [False]
    monkeypatch.setattr(_registration, "_plain", lambda *_: False)
    other = call()
    pairs = [(direct, other)] if isinstance(direct, torch.Tensor) else zip(direct, other, strict=True)
    for a, b in pairs:
        assert torch.equal(a, b) and a.dtype == b.dtype


@pytest.mark.parametrize("name", calls())
def test_a_mode_sees_every_call(name):
    call = calls()[name]
    with Count() as count:
        call()
    assert sum(n for f, n in count.calls.items() if f.namespace == "revstep") == 1


def test_gradients_pass_where_they_are_wanted(through):
    state, cur, f = operands(torch.float32)
    f = f.clone().requires_grad_()
    assert ops.step(state, cur, f, 1.0, 0.0, 0.5, 16, None)[1].requires_grad and through[-1]
    with torch.no_grad():
        ops.step(state, cur, f, 1.0, 0.0, 0.5, 16, None)
        assert not through[-1]
    with torch._C._AutoDispatchBelowAutograd():
        assert not ops.step(state, cur, f, 1.0, 0.0, 0.5, 16, None)[1].requires_grad and not through[-1]


def test_what_stands_between_is_asked(through):
    state, cur, f = operands()

    def step(f=f):
        return ops.step(state, cur, f, 1.0, 0.0, 0.5, 16, None)

    with forward_ad.dual_level():
        step()
    assert through[-1]
    with torch.profiler.profile():
        step()
    assert through[-1]
    torch.func.vmap(lambda x: (step(), x)[1])(torch.zeros(2))
    assert through[-1]
    torch.jit.trace(lambda x: step(x)[1], (f,), check_trace=False)
    assert any(through)
    del through[:]
    torch.compile(lambda x: step(x)[1], backend="eager", fullgraph=True)(f)
    assert all(through), "a compiler records the operator"
    del through[:]
    step(f.to_mkldnn().to_dense())
    assert through == [False]


class Wrapper(torch.Tensor):
    pass


@pytest.mark.parametrize(
    "other", [lambda f: f.as_subclass(Wrapper), lambda f: torch.nn.Parameter(f), lambda f: f.to("meta")]
)
def test_other_tensors_pass_the_dispatcher(other, through):
    f = operands(torch.float32)[2]
    with torch.no_grad():
        try:
            ops.scale(other(f), [0.5], torch.float32)
        except RuntimeError:
            pass
    assert through[-1]


def test_wrong_operands_are_refused_either_way(monkeypatch):
    state, _, f = operands()
    for plain in (True, False):
        monkeypatch.setattr(_registration, "_plain", lambda *_, plain=plain: plain)
        with pytest.raises(ConfigError, match="the increment f has shape"):
            ops.step(state, None, f[:1], 1.0, 0.0, 1.0, 16, None)


def test_mutant_that_forgets_the_modes(monkeypatch):
    monkeypatch.setattr(_registration, "_modes", lambda: 0)
    with pytest.raises(AssertionError):
        test_a_mode_sees_every_call("decode")


def test_the_carry_of_steps_without_one_has_no_elements():
    state, cur, f = operands()
    for _ in range(2):
        carry = ops.step(state, cur, f, 1.0, 0.0, 1.0, 16, None)[2]
        assert carry.shape == (0, 0) and carry is _kernels._NO_CARRY
