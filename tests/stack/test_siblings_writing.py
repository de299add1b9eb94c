"""Gradients that a block's backward writes into, beside the recurrence by hand (see ``siblings.py``)."""

import pytest
import torch
from siblings import TOLERANCE, distance, example
from torch import nn

import revstep
from revstep._recurrence import walk


class Writing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 0.7 * x

    @staticmethod
    def backward(ctx, g):
        return g.mul_(0.7)


def hooked(module, x):
    y = torch.tanh(module(x))
    y.register_hook(lambda g: g.mul_(0.7))
    return y


class Ending(nn.Module):
    """The writer is the last node of the block, so that what it writes to is what the step handed over."""

    def __init__(self, use):
        super().__init__()
        self.linear, self.use = nn.Linear(6, 6), use

    def forward(self, x):
        return self.use(self.linear, x)


WRITERS = {"function": lambda m, x: Writing.apply(torch.tanh(m(x))), "hook": hooked}
#: (alpha, beta, gamma) of the schemes whose gradient of the increment would be the incoming one itself.
STEPS = {
    "midpoint": (revstep.Midpoint(h=0.5), (1.0, 0.0, 1.0)),
    "leapfrog": (revstep.Leapfrog(h=1.0), (-1.0, 2.0, 1.0)),
    "blend": (revstep.Blend(c=0.25, h=0.8), (0.25, 0.75, 1.0)),
    "bdia": (revstep.BDIA(c=0.5, h=2 / 3, seed=1), None),
}


def written_into(kind, step, dtype, keep=0):
    """The stack's gradients, and those where each step's gradients are memory of their own."""
    found = []
    scheme, coefficients = STEPS[step]
    for ours in (True, False):
        torch.manual_seed(1)
        blocks = [Ending(WRITERS[kind]).to(dtype) for _ in range(4)]
        x = example(4, 6).detach().to(dtype).requires_grad_()
        if ours:
            y = revstep.ReversibleStack(blocks, scheme, keep=keep)(x)
        elif coefficients is None:
            new = [Ending(GIVES_NEW[kind]).to(dtype) for _ in blocks]
            for to, block in zip(new, blocks):
                to.load_state_dict(block.state_dict())
            blocks, y = new, revstep.ReversibleStack(new, scheme, keep=keep)(x)
        else:
            alpha, beta, gamma = coefficients
            previous = y = x
            for block in blocks:
                previous, y = y, alpha * previous + beta * y + gamma * (1.0 * block(y))
        y.float().square().sum().backward()
        parameters = nn.ModuleList(blocks).named_parameters()
        found.append({name: p.grad for name, p in parameters} | {"the input": x.grad})
    return distance(*found)


class Giving(torch.autograd.Function):  # the oracle where coefficients are drawn
    @staticmethod
    def forward(ctx, x):
        return 0.7 * x

    @staticmethod
    def backward(ctx, g):
        return g * 0.7


def hooked_new(module, x):
    y = torch.tanh(module(x))
    y.register_hook(lambda g: g * 0.7)
    return y


GIVES_NEW = {"function": lambda m, x: Giving.apply(torch.tanh(m(x))), "hook": hooked_new}


@pytest.mark.parametrize("keep", [0, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("kind", WRITERS)
def test_a_backward_that_writes_into_its_gradient(kind, step, dtype, keep):
    assert written_into(kind, step, dtype, keep) < (TOLERANCE if dtype == torch.float32 else 0.1)


def test_a_gradient_handed_on_as_it_is_is_told_apart(monkeypatch):
    gradients = walk.gradients

    def shared(g, c, needs, value_dtype):
        out = gradients(g, c, needs, value_dtype)
        return [*out[:2], g if out[2] is not None else None]

    monkeypatch.setattr("revstep.stack._nodes.gradients", shared)
    assert written_into("function", "midpoint", torch.float32) > 0.1
