"""The coupling ``q' = q + F(p); p' = p + G(q')`` as other packages reverse it, with their own classes around the same halves (F, G).

All start with q = p = x and give p. Their interface is one tensor that holds both streams, so x is joined to itself on the way in and p cut out on the
way out. None of them puts the autocast of the forward pass back in force when it evaluates a block again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from .peers import peer

Halves = Sequence[tuple[nn.Module, nn.Module]]


class Joined(nn.Module):
    """``x -> p``: around a module from one joined tensor to another, the last stream at ``stream`` of two."""

    loses_autocast = True

    def __init__(self, both: Callable[[Tensor], Tensor], stream: int):
        super().__init__()
        self.both, self.stream = both, stream

    def forward(self, x: Tensor) -> Tensor:
        return self.both(torch.cat([x, x], dim=-1)).chunk(2, dim=-1)[self.stream]


class Stored(nn.Module):
    """The coupling with everything stored by autograd: what the others must agree with."""

    def __init__(self, halves: Halves):
        super().__init__()
        self.halves = halves

    def forward(self, x: Tensor) -> Tensor:
        q = p = x
        for F, G in self.halves:
            q = q + F(p)
            p = p + G(q)
        return p


def revlib(package: ModuleType, halves: Halves) -> nn.Module:
    return Joined(package.ReversibleSequential(*(half for pair in halves for half in pair), split_dim=-1), 1)


def memcnn(package: ModuleType, halves: Halves) -> nn.Module:
    layers = [package.InvertibleModuleWrapper(package.AdditiveCoupling(F, G, split_dim=-1)) for F, G in halves]
    return Joined(nn.Sequential(*layers), 1)


def revtorch(package: ModuleType, halves: Halves) -> nn.Module:
    blocks = nn.ModuleList(package.ReversibleBlock(F, G, split_along_dim=-1) for F, G in halves)
    return Joined(package.ReversibleSequence(blocks), 1)


def reformer(package: ModuleType, halves: Halves) -> nn.Module:
    """transformers' ReformerLayer and its reversible function; attention and feed-forward replaced by F and G."""
    model = package.models.reformer.modeling_reformer

    class Attention(nn.Module):
        def __init__(self, F: nn.Module):
            super().__init__()
            self.F = F

        def forward(self, hidden_states: Tensor, **ignored: Any) -> Any:
            return model.AttentionOutput(hidden_states=self.F(hidden_states), attention_probs=None, buckets=None)

    config = package.ReformerConfig(attn_layers=["local"], hidden_size=4, num_attention_heads=1, attention_head_size=4, feed_forward_size=4)
    layers = nn.ModuleList(model.ReformerLayer(config) for _ in halves)
    for layer, (F, G) in zip(layers, halves):
        layer.attention, layer.feed_forward = Attention(F), G
    layers.train()
    rest = (None, None, [], [], None, False, None, False, False)
    return Joined(lambda both: model._ReversibleFunction.apply(both, layers, *rest), 1)


#: Row -> package, and how its trunk is made.
PEERS: dict[str, tuple[str, Callable[[ModuleType, Halves], nn.Module]]] = {
    "revlib": ("revlib", revlib),
    "memcnn": ("memcnn", memcnn),
    "RevTorch": ("revtorch", revtorch),
    "Reformer layers": ("transformers", reformer),
}


def trunks(halves: Halves, only: str | None = None) -> tuple[dict[str, nn.Module], list[dict[str, str]]]:
    """``(trunk of each installed package by name, what was left out and why)``; ``only``: of this row and no other."""
    found, skipped = {}, []
    for name, (package, make) in PEERS.items():
        if only not in (None, name):
            continue
        module, reason = peer(package)
        if module is None:
            skipped.append({"what": name, "reason": reason})
        else:
            found[name] = make(module, halves)
    return found, skipped
