"""Models around a stack, and counts of what dynamo compiled."""

from __future__ import annotations

import contextlib

import stacks
import torch
import torch.nn.functional as F
from torch import nn
from torch._dynamo.utils import counters

VOCAB = 50


def graphs() -> int:
    """Graphs that dynamo has handed to a backend since the test began."""
    return counters["stats"].get("unique_graphs", 0)


def breaks() -> list[str]:
    """Reasons of all graph breaks since the test began."""
    return list(counters["graph_break"])


class Around(nn.Module):
    """Embedding, stack, norm, head and loss."""

    def __init__(self, stack: nn.Module):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.stack = nn.Embedding(VOCAB, 32), stack
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, VOCAB)

    def forward(self, tokens, *args, **kwargs):
        y = self.stack(self.embedding(tokens), *args, **kwargs)
        y = y[0] + 2 * y[1] if self.stack.readout == "pair" else y
        return F.cross_entropy(self.head(self.norm(y)).flatten(0, 1), tokens.flatten())


def around(name="blend", layers=3, **options) -> Around:
    return Around(stacks.stack(name, layers=layers, **options))


def tokens(batch=2):
    return torch.randint(0, VOCAB, (batch, 9), generator=torch.Generator().manual_seed(0))


def train(model, call, *args, seed=5, context=contextlib.nullcontext, forwards=1, **kwargs):
    """Losses, all gradients and the next random number of ``forwards`` passes through ``call``, then as many
    backwards.
    """
    for p in model.parameters():
        p.grad = None
    torch.manual_seed(seed)
    with context():
        losses = [call(*args, **kwargs) for _ in range(forwards)]
    for loss in losses:
        loss.backward()
    return [*(loss.detach() for loss in losses), *(p.grad for p in model.parameters()), torch.rand(1)]
