"""Paths of a stack that other tests pass by."""

import json
import threading

import pytest
import torch
from torch import nn

import revstep
from revstep.stack import _arguments, _members, _outside, _saved, _stream, rebuilding


def test_a_report_is_plain_values():
    blocks = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    stack = revstep.ReversibleStack(blocks, revstep.Midpoint())
    stack(torch.randn(2, 8, requires_grad=True)).sum().backward()
    report = stack.report
    found = json.loads(json.dumps(report.to_dict()))
    assert found["exact"] is True and found["matched"] == found["layers"] == 3
    assert type(report)(**found) == report


@pytest.mark.parametrize(
    "error, memory",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 3 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("a shape"), False),
    ],
)
def test_errors_that_say_nothing_about_a_block(error, memory):
    assert _arguments.out_of_memory(error) is memory


# ---- What a block may do that few do ----


class AsksTwice(torch.autograd.Function):
    """sin x, whose backward reads what it saved two times."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        (again,) = ctx.saved_tensors
        return g * (x.cos() + again.cos()) / 2


class Block(nn.Module):
    """A linear map, then whatever is given."""

    def __init__(self, then, width=8):
        super().__init__()
        self.map = nn.Linear(width, width)
        self.then = then

    def forward(self, x):
        return self.then(self.map(x))


def passed(then, keep=0, scheme=None, **options):
    """Input and gradients of a pass through three such blocks."""
    torch.manual_seed(0)
    module = revstep.ReversibleStack(
        [Block(then) for _ in range(3)], scheme or revstep.Blend(c=0.25), keep=keep, **options
    )
    x = torch.randn(4, 8, requires_grad=True)
    y = module(x)
    y.sum().backward()
    return [x.grad, *(p.grad for p in module.parameters())]


def equal(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_node_that_asks_twice_for_what_it_saved():
    assert equal(passed(AsksTwice.apply), passed(AsksTwice.apply, keep=3))
    assert equal(passed(AsksTwice.apply), passed(torch.sin))


def test_a_block_that_differentiates_inside_in_backward_alone():
    def then(x):
        if rebuilding() and torch.is_grad_enabled():
            with torch.enable_grad():
                torch.autograd.grad(x.exp().sum(), x)
        return x.tanh()

    with pytest.raises(revstep.UnsupportedError, match="differentiates inside its own forward pass and must"):
        passed(then)


def test_without_numbers_the_work_of_a_block_is_compared_all_the_same():
    """Where states have left their range nothing is said of values, but another graph is another graph."""
    state = revstep.FixedPoint(on_nonfinite="propagate")

    def far(x):
        return x * 1e9

    def other(x):
        return (x * 1e9).tanh() * 1e9 if rebuilding() else x * 1e9

    assert all(g.isnan().any() for g in passed(far, state=state)[:1])
    with pytest.raises(revstep.ReconstructionError, match="layer 2"):
        passed(other, state=state)


@pytest.mark.parametrize("order", [lambda s, x: s * x + x, lambda s, x: x + s * x])
def test_a_scaled_stream_is_a_branch_on_either_side(order):
    scale = torch.tensor([0.5])
    stream = _stream.Stream.of(torch.randn(2, 3))
    assert torch.equal(_stream.remembered(order(scale, stream)), 0.5 * stream.value)


def test_a_stream_without_its_value_is_a_tensor():
    """Such come from code that makes a tensor of the same class by itself."""
    bare = torch.ones(2).as_subclass(_stream.Stream)
    assert type(_stream.ordinary(bare)) is torch.Tensor and torch.equal(
        _stream.ordinary([bare])[0], torch.ones(2)
    )


def test_tensors_without_a_storage_have_no_address():
    sparse, opaque = torch.eye(2).to_sparse(), torch.eye(2).to_mkldnn()
    assert _stream._address(sparse) == 0 and _stream._address(torch.eye(2)) != 0
    assert _outside._storages(opaque) == [] and len(_outside._storages(torch.eye(2))) == 1


def test_a_kind_of_tensor_that_does_not_tell_its_storage_is_not_counted(monkeypatch):
    class Silent:
        def untyped_storage(self):
            raise NotImplementedError("no storage of this kind of tensor")

    monkeypatch.setattr(_outside, "components", lambda t: iter([Silent()]))
    assert _outside._storages(torch.eye(2)) == []


def test_a_tensor_of_a_transform_is_what_it_wraps():
    seen = []

    def f(x):
        seen.extend(_saved.components(x))
        return x.sum()

    x = torch.arange(3.0)
    torch.func.grad(f)(x)
    assert [part.data_ptr() for part in seen] == [x.data_ptr()]


def test_nothing_is_put_back_where_nothing_changed():
    norm = nn.BatchNorm1d(3)
    members = _members.Members(norm)
    with members.restored([], {}):
        norm.running_mean.add_(1.0)
    assert torch.equal(norm.running_mean, torch.ones(3))


# ---- Forwards on the instance, as libraries that offload put them there ----


class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.map = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.map(x).tanh()


def offloaded(module):
    """Its forward is an attribute now, and counts."""
    own, calls = module.forward, []

    def forward(*args, **kwargs):
        calls.append(args)
        return own(*args, **kwargs)

    module.forward = forward
    return calls


def test_the_increment_of_a_forward_on_the_instance():
    torch.manual_seed(0)
    module, x = Adds(), torch.randn(4, 8)
    calls = offloaded(module)
    assert torch.equal(revstep.from_residual(module)(x), module.map(x).tanh()) and len(calls) == 1


class Tokenwise(nn.Module):
    def __init__(self, around=lambda mlp, x: mlp(x)):
        super().__init__()
        self.mlp = revstep.tokenwise(nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 8)))
        self.around = around

    def forward(self, x):
        return self.around(self.mlp, x)


def by_tiles(prepare=lambda block: None, **block):
    torch.manual_seed(0)
    module = revstep.ReversibleStack([Tokenwise(**block) for _ in range(2)], revstep.Blend(c=0.25), tile=4)
    for one in module.blocks:
        prepare(one)
    x = torch.randn(1, 12, 8, requires_grad=True)
    module(x).sum().backward()
    return [x.grad, *(p.grad for p in module.parameters())], module


def test_tiles_of_a_forward_on_the_instance():
    """It is called for every tile, and is in its place afterwards."""
    calls = []
    expected, _ = by_tiles()
    found, module = by_tiles(lambda block: calls.append(offloaded(block.mlp)))
    assert equal(found, expected) and all(len(made) == 6 for made in calls)
    assert all(block.mlp.forward.__name__ == "forward" for block in module.blocks)
    assert all("forward" not in vars(block.mlp) for block in by_tiles()[1].blocks)


def test_another_thread_has_the_whole_module():
    """Tiles are those of the evaluation that is under way in this thread."""
    seen = []

    def around(mlp, x):
        def beside():
            with torch.no_grad():
                seen.append(mlp(x.detach()))

        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
        y = mlp(x)
        assert (seen[-1] - y).abs().max() < 1e-6
        return y

    assert equal(by_tiles(around=around)[0], by_tiles()[0]) and len(seen) == 4
