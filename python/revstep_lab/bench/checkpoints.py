"""torch.utils.checkpoint around the blocks of a residual trunk, in the ways it is used."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from revstep.stack.selection import policy_of

Trunk = Callable[[Tensor], Tensor]


def every(layers: int) -> int:
    """k: the length of a segment at which k block inputs and one segment's graph are fewest."""
    return max(1, round(math.sqrt(layers)))


def keep_attention() -> Any:
    """Contexts in which outputs of attention are kept, the same operators as ``ReversibleStack(save_ops="attention")`` keeps."""
    keeps = policy_of("attention")

    def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if keeps(op, None, args, kwargs) else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def trunks(blocks: Sequence[nn.Module]) -> dict[str, Trunk]:
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
    return {"checkpoint": each, "checkpoint, attention kept": lambda x: each(x, context_fn=keep_attention), **coarser}
