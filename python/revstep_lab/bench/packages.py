"""Other packages that revstep is measured beside, and the trunks made of them: torch's checkpointing, and
reversed couplings of the same halves. A package is imported when a measurement starts, and skipped with a
reason where it is not there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from revstep._imports import require
from revstep.errors import ConfigError
from revstep.stack._selection import policy_of

_EXTRA = "pip install 'revstep[bench]'"
#: Package -> oldest (major, minor) whose interface is the one called here, and what installs it.
OLDEST = {
    "rebound": ((5, 2), _EXTRA),
    "heyoka": ((7, 0), _EXTRA),
    "torchdiffeq": ((0, 2), _EXTRA),
    "diffrax": ((0, 7), _EXTRA),
    "revlib": ((1, 7), _EXTRA),
    "revtorch": ((0, 2), _EXTRA),
    # Its torchvision and SimpleITK are for its examples, and a torchvision of another build breaks
    # transformers.
    "memcnn": ((1, 5), "pip install --no-deps memcnn"),
    "transformers": ((5, 0), "pip install 'revstep[hf]'"),
}


def peer(name: str) -> tuple[ModuleType | None, str]:
    """``(module, "")``, or ``(None, why it is left out)``."""
    oldest, install = OLDEST[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of torch
            module = require(name, "this comparison")
    except ConfigError:
        return None, f"this comparison needs the package {name}, which is not installed; run: {install}"
    found = tuple(int(part) for part in version(name).split(".")[:2])
    if found < oldest:
        return (
            None,
            (
                f"{name} {version(name)} is installed, {'.'.join(map(str, oldest))} or newer is needed:"
                f" {install} --upgrade"
            ),
        )
    return module, ""


def versions(*names: str) -> dict[str, str]:
    """Installed version of those of the packages that can be measured beside, by name."""
    return {name: version(name) for name in names if peer(name)[0] is not None}


def no_compiler() -> str:
    """Why torch.compile cannot make code for this machine's CPU; empty where it can."""
    from torch._inductor import cpp_builder

    try:
        cpp_builder.get_cpp_compiler()
    except Exception as error:  # torch's own, which has changed its name
        return f"torch.compile needs a C++ compiler: {str(error).strip().splitlines()[0]}"
    return ""


# ---- torch.utils.checkpoint around the blocks of a residual trunk, in the ways it is used ----

Trunk = Callable[[Tensor], Tensor]


def every(layers: int) -> int:
    """k: the length of a segment at which k block inputs and one segment's graph are fewest."""
    return max(1, round(math.sqrt(layers)))


def keep_attention() -> Any:
    """Contexts in which outputs of attention are kept, the same operators as
    ``ReversibleStack(save_ops="attention")`` keeps.
    """
    keeps = policy_of("attention")

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return (
            CheckpointPolicy.MUST_SAVE if keeps(op, None, args, kwargs) else CheckpointPolicy.PREFER_RECOMPUTE
        )

    return create_selective_checkpoint_contexts(policy)


def checkpointed_trunks(blocks: Sequence[nn.Module]) -> dict[str, Trunk]:
    """By name; each computes ``p + f(p)`` block by block."""
    k = every(len(blocks))
    again = partial(checkpoint, use_reentrant=False)

    def each(x: Tensor, **options: Any) -> Tensor:
        for block in blocks:
            x = x + again(block, x, **options)
        return x

    def some(x: Tensor) -> Tensor:
        for i, block in enumerate(blocks):
            x = x + (again(block, x) if i % k == 0 else block(x))
        return x

    def segment(start: int, x: Tensor) -> Tensor:
        for block in blocks[start : start + k]:
            x = x + block(x)
        return x

    def segments(x: Tensor) -> Tensor:
        for start in range(0, len(blocks), k):
            x = again(partial(segment, start), x)
        return x

    coarser = {f"checkpoint, 1 block in {k}": some, f"checkpoint, segments of {k}": segments} if k > 1 else {}
    return {
        "checkpoint": each,
        "checkpoint, attention kept": lambda x: each(x, context_fn=keep_attention),
        **coarser,
    }


# ------------------------------------------------------------------------------------------------------------
# The coupling ``q' = q + F(p); p' = p + G(q')`` as other packages reverse it, with their own classes around
# the same halves (F, G).
#
# All start with q = p = x and give p. Their interface is one tensor that holds both streams, so x is joined
# to itself on the way in and p cut out on the way out. None of them puts the autocast of the forward pass
# back in force when it evaluates a block again.

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
    layers = [
        package.InvertibleModuleWrapper(package.AdditiveCoupling(F, G, split_dim=-1)) for F, G in halves
    ]
    return Joined(nn.Sequential(*layers), 1)


def revtorch(package: ModuleType, halves: Halves) -> nn.Module:
    blocks = nn.ModuleList(package.ReversibleBlock(F, G, split_along_dim=-1) for F, G in halves)
    return Joined(package.ReversibleSequence(blocks), 1)


def reformer(package: ModuleType, halves: Halves) -> nn.Module:
    """transformers' ReformerLayer and its reversible function; attention and feed-forward replaced by F and
    G.
    """
    model = package.models.reformer.modeling_reformer

    class Attention(nn.Module):
        def __init__(self, F: nn.Module):
            super().__init__()
            self.F = F

        def forward(self, hidden_states: Tensor, **ignored: Any) -> Any:
            return model.AttentionOutput(
                hidden_states=self.F(hidden_states), attention_probs=None, buckets=None
            )

    config = package.ReformerConfig(
        attn_layers=["local"],
        hidden_size=4,
        num_attention_heads=1,
        attention_head_size=4,
        feed_forward_size=4,
    )
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


def coupled_trunks(
    halves: Halves, only: str | None = None
) -> tuple[dict[str, nn.Module], list[dict[str, str]]]:
    """``(trunk of each installed package by name, what was left out and why)``; ``only``: of this row and no
    other.
    """
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
