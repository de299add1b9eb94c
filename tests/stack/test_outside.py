"""What a block keeps beside saved tensors is counted, wherever it keeps it; what it does not keep is not."""

import gc

import pytest
import torch
from torch import nn

from revstep.errors import UnsupportedError
from revstep.stack import _outside
from revstep.stack._outside import Outside

ROWS, WIDTH = 32, 16
EACH = ROWS * WIDTH * 4
CONSTANT = torch.linspace(0, 1, WIDTH)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.x * g


class SavedSquare(Square):
    """The same as it should be written."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x


class Block(nn.Module):
    """tanh(W x), and what ``how(block, x, hidden)`` makes of it."""

    def __init__(self, how):
        super().__init__()
        self.linear, self.how, self.seen = nn.Linear(WIDTH, WIDTH), how, []

    def forward(self, x):
        return self.how(self, x, torch.tanh(self.linear(x)))


def hook(block, x, h):
    handle = block.linear.register_forward_hook(lambda module, args, out: block.seen.append(out))
    try:
        return block.linear(h)
    finally:
        handle.remove()


def backward_closure(block, x, h):
    y = h * 2
    y.register_hook(lambda g: g * h.detach())
    return y


def assign(block, value):
    block.kept = value


#: Where something stays, and how many activations it is.
KEEPS = {
    "on ctx": (lambda b, x, h: Square.apply(h), 1),
    "the input, on ctx": (lambda b, x, h: h + Square.apply(x), 1),
    "on the module": (lambda b, x, h: (assign(b, h.detach()), h * 2)[1], 1),
    "the output, on the module": (lambda b, x, h: (assign(b, h.detach()), h)[1], 1),
    "a part of one keeps all of it": (lambda b, x, h: (assign(b, h.detach()[:1]), h * 2)[1], 1),
    "two": (lambda b, x, h: (assign(b, [h.detach(), {"a": h.detach() * 2}]), h * 2)[1], 2),
    "a view and its base are one": (lambda b, x, h: (assign(b, [h.detach(), h.detach().t()]), h * 2)[1], 1),
    "in a hook's list": (hook, 1),
    "in a hook's closure": (backward_closure, 1),
    "as an array": (lambda b, x, h: (assign(b, h.detach().numpy()), h * 2)[1], 1),
    "a sparse copy": (lambda b, x, h: (assign(b, h.detach().to_sparse()), h * 2)[1], 1 + 2 * 2),
    "a new constant": (lambda b, x, h: (assign(b, torch.tensor([1.0] * ROWS * WIDTH)), h * 2)[1], 1),
}
NOTHING = {
    "a plain block": lambda b, x, h: h,
    "saved as it should be": lambda b, x, h: SavedSquare.apply(h),
    "a view of the output": lambda b, x, h: (h * h)[:, : WIDTH // 2],
    "a constant of the program": lambda b, x, h: (assign(b, CONSTANT[None]), h * CONSTANT)[1],
    "a weight": lambda b, x, h: (assign(b, b.linear.weight.t()), h)[1],
    "numbers": lambda b, x, h: (assign(b, h.sum().item()), h)[1],
    "written in place": lambda b, x, h: (h * 2).relu_(),
    "a cycle that only the collector finds": lambda b, x, h: (cycle(h), h * 2)[1],
}


def cycle(h):
    ring = [h.detach()]
    ring.append(ring)


def measure(how, exclude=(), dtype=None):
    block = Block(how)
    leaf = torch.randn(ROWS, WIDTH, requires_grad=True)
    cast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None)
    with cast, Outside(block.parameters()) as found:
        x = leaf.clone()
        y = block(x)
    node = y.grad_fn
    del x, y
    return found.nbytes(exclude), node


@pytest.mark.parametrize("name", KEEPS)
def test_what_stays_is_counted(name):
    how, activations = KEEPS[name]
    assert measure(how)[0] == activations * EACH


@pytest.mark.parametrize("name", NOTHING)
def test_what_does_not_stay_is_not(name):
    assert measure(NOTHING[name])[0] == 0


def test_what_the_caller_keeps_is_not_counted():
    held = []
    assert measure(lambda b, x, h: (held.append(h.detach()), h * 2)[1], exclude=held)[0] == 0
    assert measure(lambda b, x, h: (held.append(h.detach()), h * 2)[1])[0] == EACH


def test_it_is_asked_later_too():
    kept = [torch.zeros(1)]
    with Outside() as found:
        kept[0] = kept[0] + torch.ones(7)
    assert found.nbytes() == 7 * 4
    kept.clear()
    assert found.nbytes() == 0


def test_the_cache_of_autocast_is_not_the_blocks():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert measure(lambda b, x, h: h, dtype=torch.bfloat16)[0] == 0
        block, x = Block(lambda b, x, h: h), torch.randn(2, WIDTH)
        with Outside() as found:  # not told which tensors are cast
            y = block(x)
        assert found.nbytes(y) == 2 * sum(p.numel() for p in block.parameters())
        assert measure(KEEPS["on ctx"][0], dtype=torch.bfloat16)[0] == EACH // 2


def test_a_block_that_asks_for_a_saved_tensor_is_refused():
    def how(b, x, h):
        return h * torch.autograd.grad(h.square().sum(), h, create_graph=True)[0]

    with pytest.raises(UnsupportedError, match="inside its own forward"):
        measure(how)
    assert not torch.utils._python_dispatch._get_current_dispatch_mode_stack(), "and nothing stays in force"
    assert torch.ones(1, requires_grad=True).square().backward() is None


# ---- the same checks reject a tool that looks less closely ----


def saw_outputs_only(found, func, given, out):
    for t in _outside._tensors(out):
        _outside._follow(t, found._made, {})


def saw_saved_tensors_only(found, func, given, out):
    """What an estimate from saved tensors amounts to: nothing that is kept elsewhere is seen."""


def test_without_what_operators_were_given_constants_are_counted(monkeypatch):
    monkeypatch.setattr(Outside, "_saw", saw_outputs_only)
    assert measure(NOTHING["a constant of the program"])[0] > 0 and measure(NOTHING["a weight"])[0] > 0


@pytest.mark.parametrize("name", KEEPS)
def test_an_estimate_from_saved_tensors_misses_all_of_them(name, monkeypatch):
    monkeypatch.setattr(Outside, "_saw", saw_saved_tensors_only)
    assert measure(KEEPS[name][0])[0] == 0


def test_without_the_collector_cycles_are_counted(monkeypatch):
    gc.disable()
    try:
        monkeypatch.setattr(_outside.gc, "collect", lambda: None)
        assert measure(NOTHING["a cycle that only the collector finds"])[0] == EACH
    finally:
        gc.enable()


def test_without_placeholders_saved_tensors_are_counted():
    block, x = Block(lambda b, x, h: h * 2), torch.randn(ROWS, WIDTH)
    with Outside(block.parameters(), placeholders=False) as found:
        y = block(x)
    assert found.nbytes(y) == EACH
