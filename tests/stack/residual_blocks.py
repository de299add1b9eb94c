"""Blocks written the usual way, their increment, and blocks whose increment cannot be followed."""

from __future__ import annotations

import stacks
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

WIDTH = 16


class Branches(nn.Module):
    """Two pre-norm branches; subclasses say how they are put together."""

    def __init__(self, width=WIDTH, dropout=0.1):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = dropout
        self.register_buffer("scale", torch.tensor(0.5))

    def a(self, x):
        return F.dropout(self.first(self.norm(x)).tanh(), self.dropout, self.training) * self.scale

    def b(self, x):
        return self.second(self.norm(x)).tanh()

    def forward(self, x):
        raise AssertionError("only subclasses are called")


class Increment(Branches):
    def forward(self, x):
        a = self.a(x)
        return a + self.b(x + a)


class Usual(Branches):
    def forward(self, x):
        x = x + self.a(x)
        return x + self.b(x)


class Named(Branches):
    def forward(self, x):
        res = x
        h = self.a(x)
        x = torch.add(h, res)
        return self.b(x).add(x)


class BranchWritten(Branches):
    """A branch that has been added is overwritten by the activation of the next one."""

    def forward(self, x):
        h = self.first(self.norm(x))
        x = x + h
        return x + self.second(F.relu(h, inplace=True))


class BranchWrittenLast(Branches):
    def forward(self, x):
        h = self.a(x)
        x = x + h
        h.zero_()
        return x


class InPlace(Branches):
    def forward(self, x):
        x += self.a(x)
        x += self.b(x)
        return x


class OntoBranch(Branches):
    def forward(self, x):
        h = self.a(x)
        h += x
        return self.b(h) + h


class Flat(Branches):
    def forward(self, x):
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        x = x + self.a(x)
        return (x + self.b(x)).view(shape)


class FlatIncrement(Increment):
    """Rows in one dimension: the sums over rows are other ones, in their last bits."""

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).view(x.shape)


class Auxiliary(Branches):
    def forward(self, x):
        y = x + self.a(x)
        return y + self.b(y), y.square().mean(), y


class Listed(Branches):
    def forward(self, x):
        y = x + self.a(x)
        return [y + self.b(y), None]


USUAL = [Usual, Named, InPlace, OntoBranch, Flat, Auxiliary, Listed]


class PostNorm(Branches):
    def forward(self, x):
        return self.norm(x + self.b(x))


class Scaled(Branches):
    def forward(self, x):
        return 0.5 * x + self.b(x)


class ScaledAfterwards(Branches):
    def forward(self, x):
        y = x + self.b(x)
        y.mul_(0.5)
        return y


class ScaledInPart(Branches):
    def forward(self, x):
        y = x + self.b(x)
        y[..., 0] = 0.0
        return y


class ScaledThroughAView(Branches):
    def forward(self, x):
        y = x + self.b(x)
        y.detach()[..., 0].mul_(2.0)
        return y


class OldName(Branches):
    def forward(self, x):
        old = x
        x += self.b(x)
        return old + self.a(x)


class Discarded(Branches):
    def forward(self, x):
        x = x + self.a(x)
        x.add_(self.b(x))
        return x


class ThroughItsView(Branches):
    def forward(self, x):
        x = x + self.a(x)
        flat = x.view(-1, WIDTH)
        flat += self.b(flat)
        return x


class ViewBefore(Branches):
    def forward(self, x):
        x = x + self.a(x)
        head = x[..., :1]
        x += self.b(x)
        return x + head.expand_as(x)


class Reentrant(Branches):
    def forward(self, x):
        return checkpoint(lambda t: t + self.b(t), x, use_reentrant=True)


class Nothing(Branches):
    def forward(self, x):
        self.b(x)


class Dictionary(Branches):
    def forward(self, x):
        return {"x": x + self.b(x)}


class Narrow(Branches):
    def forward(self, x):
        return (x + self.b(x))[..., :4]


UNTRACKED = [PostNorm, Scaled, ScaledAfterwards, ScaledInPart, ScaledThroughAView, Reentrant]
OLD_NAMES = [OldName, Discarded, ThroughItsView, ViewBefore]


def alike(cls, layers=3, **options):
    """Blocks of a class with the weights that any other class gets."""
    torch.manual_seed(0)
    return [cls(**options) for _ in range(layers)]


def batch(dtype=torch.float32):
    return torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def step(stack, x):
    return stacks.run(stack, x, loss=lambda y: (y[0] if isinstance(y, tuple) else y).square().sum())
