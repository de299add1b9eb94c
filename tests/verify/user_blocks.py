"""Blocks as users write them: one that keeps all rules, and one that breaks each. ``make_*`` are factories
for ``--block``.
"""

import random

import numpy as np
import torch
from torch import nn

from revstep_lab.verify import example_blocks

WIDTH = 16
_calls = [0]


def make_good(width=WIDTH, dropout=0.1, scale=4.0):
    return example_blocks(1, width, dropout, scale, seed=int(torch.randint(10**6, ())))[0]


def make_pair():
    return make_good().halves()


class Around(nn.Module):
    """A good block, spoiled in ``spoil(x, f(x))``."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.inner = make_good(dropout=dropout)

    def forward(self, x):
        return self.spoil(x, self.inner(x))

    def example_input(self):
        return torch.randn(2, 5, WIDTH)


class Good(Around):
    def spoil(self, x, f):
        return f


class Counter(Around):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def spoil(self, x, f):
        self.calls += 1
        return f * (1 + 0.01 * self.calls)


class RunningMean(Around):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def spoil(self, x, f):
        self.mean.mul_(0.9).add_(x.detach().mean((0, 1)), alpha=0.1)
        return f - self.mean.clone()


class PrivateGenerator(Around):
    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def spoil(self, x, f):
        return f + torch.rand(x.shape, generator=self.generator)


class Unseeded(Around):
    """No two evaluations agree, on whichever copy, and no attribute tells why."""

    def spoil(self, x, f):
        return f + torch.rand(
            x.shape, generator=torch.Generator().manual_seed(random.SystemRandom().getrandbits(40))
        )


class Global(Around):
    def spoil(self, x, f):
        _calls[0] += 1
        return f * (1 + 0.01 * _calls[0])


class NumpyNoise(Around):
    def spoil(self, x, f):
        return f * torch.from_numpy(np.random.rand(*x.shape)).to(f.dtype)  # noqa: NPY002


class PythonNoise(Around):
    def spoil(self, x, f):
        return f * random.random()


class InPlace(Around):
    def forward(self, x):
        x += self.inner(x.clone())
        return x


class InPlaceLater(Around):
    """Writes to the input after the increment is computed; the output is right."""

    def spoil(self, x, f):
        x.relu_()
        return f


class Branches(Around):
    def spoil(self, x, f):
        return f if torch.is_grad_enabled() else f * 1.01


class Skip(Around):
    def spoil(self, x, f):
        return x + f


def make_skip_pair():
    return Skip(), Skip()


class SkipOfHalves(nn.Module):
    """The usual block, whole and in halves."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Skip(), Skip()

    def halves(self):
        return self.first, self.second

    def forward(self, x):
        return self.second(self.first(x))

    def example_input(self):
        return torch.randn(2, 5, WIDTH)


class PostNorm(Around):
    def spoil(self, x, f):
        return nn.functional.layer_norm(x + f, x.shape[-1:])


class Loud(Around):
    def spoil(self, x, f):
        return 1e4 * f


class Explodes(Around):
    """Each layer multiplies the state."""

    def spoil(self, x, f):
        return f + 1e3 * x


class Infinite(Around):
    def spoil(self, x, f):
        return f / torch.zeros_like(f)


class Tiny(Around):
    def spoil(self, x, f):
        return 1e-6 * f


class Tuple(Around):
    """As a stack allows it: auxiliary tensors after the increment."""

    def spoil(self, x, f):
        return f, f.square().mean(), None


class Listed(Around):
    def spoil(self, x, f):
        return [f, x * 2]


def make_auxiliary_pair():
    return Tuple(), Listed()


class Empty(Around):
    def spoil(self, x, f):
        return []


class Words(Around):
    def spoil(self, x, f):
        return "f(x)"


class Nothing(Around):
    def spoil(self, x, f):
        return None


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.x = x
        return x * x

    @staticmethod
    def backward(ctx, g):
        return 2 * ctx.x * g


class OnCtx(Around):
    def spoil(self, x, f):
        return Square.apply(f)


class OnModule(Around):
    def spoil(self, x, f):
        self.last = f.detach()
        return f


class InAList(Around):
    def __init__(self):
        super().__init__()
        seen = []
        self.inner.register_forward_hook(lambda module, args, out: seen.append(args[0]))

    def spoil(self, x, f):
        return f


class MakesATableOnce(Around):
    """Which is no activation and does not grow."""

    def __init__(self):
        super().__init__()
        self.table = None

    def spoil(self, x, f):
        if self.table is None:
            self.table = torch.linspace(0.5, 1.0, WIDTH) * 1.0
        return f * self.table


class Narrow(Around):
    def spoil(self, x, f):
        return f[..., :4]


class Raises(Around):
    def spoil(self, x, f):
        raise ValueError("no such key")


class Cut(Around):
    def spoil(self, x, f):
        return f.detach()


class Tired(Around):
    """Cannot be evaluated three times."""

    def __init__(self):
        super().__init__()
        self.left = [None, None]

    def spoil(self, x, f):
        if not self.left:
            raise RuntimeError("enough")
        self.left.pop()
        return f


def make_function():
    return lambda x: x


_shared = []


def make_shared():
    """Hands out one module again and again."""
    if not _shared:
        _shared.append(Good())
    return _shared[0]
