"""Faults of blocks whose errors no other test reads; and blocks that keep sparse matrices, as networks on
graphs do.
"""

import pytest
import torch
from torch import nn

import revstep
from revstep import NonDeterministicBlockError, UnsupportedError


class Twice(nn.Module):
    """Does something else where it is evaluated for the second time."""

    def __init__(self):
        super().__init__()
        self.linear, self.times = nn.Linear(4, 4), 0

    def forward(self, x):
        self.times += 1
        return self.one(x) if self.times == 1 else self.other(x)


class SavesFewer(Twice):
    def one(self, x):
        return self.linear(x).tanh().sin()

    def other(self, x):
        return self.linear(x)


class ReturnsMore(Twice):
    def one(self, x):
        return self.linear(x), x.detach().mean()

    def other(self, x):
        return self.linear(x), x.detach().mean(), x.detach().std()


class RaisesLater(Twice):
    def one(self, x):
        return self.linear(x).tanh()

    def other(self, x):
        raise TwoWords("first", "second")


class RaisesFinal(RaisesLater):
    def other(self, x):
        raise Final("stop")


class Final(Exception):
    """Of which no other class can be made."""

    def __init_subclass__(cls):
        raise TypeError("final")


class TwoWords(Exception):
    """Cannot be made from one message."""

    def __init__(self, a, b):
        super().__init__(a, b)


@pytest.mark.parametrize(
    "block, sentence",
    [
        (SavesFewer, "saved 4 tensors for backward in the forward pass and 2 when evaluated again"),
        (ReturnsMore, "returned 1 tensors beside its increment, and 2 when evaluated again"),
        (RaisesLater, "raised TwoWords"),
        (RaisesFinal, "raised Final: stop"),
    ],
)
def test_a_block_that_changes(block, sentence):
    stack = revstep.ReversibleStack([block()], revstep.Midpoint())
    out = stack(torch.randn(2, 4, requires_grad=True))
    with pytest.raises(NonDeterministicBlockError, match=sentence) as caught:
        (out[0] if isinstance(out, tuple) else out).sum().backward()
    # It is caught as what the block raised, too, where there can be such a class.
    assert isinstance(caught.value, TwoWords) == (block is RaisesLater)
    assert not isinstance(caught.value, Final)


class Takes(nn.Module):
    def forward(self, x, given=None, **more):
        return x * 0.5


@pytest.mark.parametrize(
    "args, kwargs, sentence",
    [
        ((iter([1]),), {}, "argument 0 of .* is a list_iterator"),
        (
            (),
            {"inside": [{"a": iter([1])}]},
            r"argument 'inside' of .*\(at \[0\]\['a'\]\) is a list_iterator",
        ),
    ],
)
def test_what_can_be_read_only_once(args, kwargs, sentence):
    stack = revstep.ReversibleStack([Takes()], revstep.Midpoint())
    with pytest.raises(UnsupportedError, match=sentence):
        stack(torch.randn(2, 4, requires_grad=True), *args, **kwargs)


class OnAGraph(nn.Module):
    """Neighbours' states, mixed: the matrix of edges is sparse, and is saved for backward."""

    def __init__(self, layout):
        super().__init__()
        self.mix, self.layout = nn.Linear(3, 3), layout
        dense = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
        self.edges = dense.to_sparse(layout=layout)

    def forward(self, x):
        return torch.sparse.mm(self.edges, self.mix(x)).tanh()


LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("scheme", [revstep.Midpoint(), revstep.Blend(c=0.25)], ids=["midpoint", "blend"])
def test_a_network_on_a_graph(layout, scheme):
    torch.manual_seed(3)
    blocks = [OnAGraph(layout) for _ in range(4)]
    x = torch.randn(3, 3, requires_grad=True)
    stack = revstep.ReversibleStack(blocks, scheme, checks="all")
    stored = revstep.ReversibleStack(blocks, scheme, keep=len(blocks))
    gradients = []
    for each in (stack, stored):
        out = each(x)
        gradients.append(torch.autograd.grad(out.square().sum(), [x, *stack.parameters()]))
    assert stack.report.exact
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_an_edge_changed_before_backward_is_found(layout):
    blocks = [OnAGraph(layout) for _ in range(3)]
    stack = revstep.ReversibleStack(blocks, revstep.Midpoint(), checks="all")
    loss = stack(torch.randn(3, 3, requires_grad=True)).sum()
    values = blocks[1].edges._values() if layout is torch.sparse_coo else blocks[1].edges.values()
    with torch.no_grad():
        values.data[0] += 0.5
    with pytest.raises(revstep.RevstepError, match="layer 1"):
        loss.backward()


def test_gradients_asked_for_twice():
    """What a layer saved is let go once it was asked for: the second pass rebuilds and evaluates again."""
    torch.manual_seed(1)
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)]
    stack = revstep.ReversibleStack(blocks, revstep.Midpoint())
    x = torch.randn(2, 4, requires_grad=True)
    loss = stack(x).square().sum()
    first = torch.autograd.grad(loss, [x, *stack.parameters()], retain_graph=True)
    second = torch.autograd.grad(loss, [x, *stack.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Exponential(torch.autograd.Function):
    """Asks for what it saved twice, and lets go of it in between; ``between`` is called there."""

    between = staticmethod(lambda: None)

    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y.clone()

    @staticmethod
    def backward(ctx, g):
        total = float(ctx.saved_tensors[0].sum())
        Exponential.between()
        (y,) = ctx.saved_tensors
        assert float(y.sum()) == total
        return g * y


class Grows(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return Exponential.apply(self.linear(x)) * 0.1


def test_a_saved_tensor_asked_for_twice():
    """It is let go after the first time. The layer is then evaluated again, on the state that was rebuilt."""
    torch.manual_seed(1)
    blocks = [Grows() for _ in range(3)]
    x = torch.randn(2, 4, requires_grad=True)
    gradients = []
    for options in ({}, {"keep": 3}):
        stack = revstep.ReversibleStack(blocks, revstep.Midpoint(), **options)
        gradients.append(torch.autograd.grad(stack(x).square().sum(), [x, *stack.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_rebuilt_state_written_to_before_it_is_used_again(monkeypatch):
    real, seen = revstep.ops.checksum, []
    stack = revstep.ReversibleStack([Grows() for _ in range(3)], revstep.Midpoint())
    loss = stack(torch.randn(2, 4, requires_grad=True)).square().sum()

    def damaged(state):
        seen.append(state)
        return real(state) + 1

    monkeypatch.setattr(
        Exponential, "between", staticmethod(lambda: monkeypatch.setattr(revstep.ops, "checksum", damaged))
    )
    with pytest.raises(revstep.ReconstructionError, match="rebuilt in this backward pass, was changed since"):
        loss.backward()
    assert seen
