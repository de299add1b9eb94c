"""The oracle of the sibling tests: Blend's recurrence by hand, in ordinary autograd, without the library."""

from __future__ import annotations

import torch
from torch import nn

import revstep

C = 0.25
#: The states lie on a grid of 2**-20, so that a value is off by at most half of that a step. The blocks here
#: have derivatives below 10 and gradients of order 1: that makes a few times 1e-5. A wrong tensor makes 1e-2.
TOLERANCE = 1e-3


class Plain(nn.Module):
    """What ``ReversibleStack(blocks, Blend(C))`` computes up to rounding, with everything stored."""

    def __init__(self, blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x, *args):
        previous = current = x
        rest = []
        for block in self.blocks:
            out = block(current, *args)
            increment = out[0] if isinstance(out, tuple) else out
            rest.append(out[1:] if isinstance(out, tuple) else ())
            previous, current = current, C * previous + (1 - C) * current + (1 + C) * increment
        return (current, rest) if any(rest) else current


class Wrapped(nn.Module):
    """``0.3 * use(module, x)``; the gate, if there is one, is zero at first, as LoRA's B is."""

    def __init__(self, module, use=None, gated=False):
        super().__init__()
        self.module, self.use = module, use
        self.gate = nn.Parameter(torch.zeros(())) if gated else None

    def forward(self, x, *args):
        out = self.module(x) if self.use is None else self.use(self.module, x, *args)
        return 0.3 * out * (1.0 if self.gate is None else self.gate)


def reversible(blocks, **options):
    return revstep.ReversibleStack(blocks, revstep.Blend(c=C), **options)


def built(wrap, make, layers=3, **options):
    """``wrap`` (Plain or reversible) around blocks of the same weights for the same ``make``."""
    torch.manual_seed(1)
    blocks = [make() for _ in range(layers)]
    return wrap(blocks, **options)


def example(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5)).requires_grad_()


def results(net, x, between=None, seed=7, *args):
    """Gradients of the parameters and the input of one training step, and the buffers of floats after it.

    ``between``: called with the net between forward and backward; what it returns is called after backward.
    """
    torch.manual_seed(seed)
    y = net(x, *args)
    loss = 0.0
    if isinstance(y, tuple):
        y, rest = y
        loss = sum(t.float().sum() for one in rest for t in one)
    loss = loss + y.square().sum()
    undo = between(net) if between is not None else None
    try:
        loss.backward()
    finally:
        if callable(undo):
            undo()
    gradients = {name: p.grad for name, p in net.named_parameters()} | {"the input": x.grad}
    return gradients | {f"buffer {n}": b.clone() for n, b in net.named_buffers() if b.is_floating_point()}


def distance(ours, plain):
    """The largest relative difference of two results; infinite where only one of them has a tensor."""
    assert ours.keys() == plain.keys()
    return max(_relative(ours[name], plain[name]) for name in plain)


def _relative(a, b):
    if a is None or b is None:
        return 0.0 if a is b else float("inf")
    a, b = (t.to_dense() if t.layout != torch.strided else t for t in (a, b))
    # A gradient that is zero but for rounding, as that of a bias before a normalisation, is compared with 1.
    return float((a - b).double().norm() / b.double().norm().clamp_min(1e-2))
