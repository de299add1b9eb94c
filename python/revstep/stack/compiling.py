"""What torch.compile sees of a stack: one operator, or, where the call cannot be put into one, one graph break. Imported while tracing only."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

#: Leaves of a call's arguments that an operator can carry beside tensors.
_VALUES = (type(None), bool, int, str)


def forward(stack: nn.Module, x: Any, args: tuple, kwargs: dict) -> Any:
    """``stack(x, *args, **kwargs)`` as dynamo traces it."""
    states = list(x) if isinstance(x, (tuple, list)) else [x]
    named = list(stack.parameters())
    if not stack.opaque or not all(isinstance(t, Tensor) for t in states) or len(states) > 2 or not carried((args, kwargs)) or not plain(named):
        return outside(stack, x, args, kwargs)
    tensors: list[Tensor] = []
    arguments = encode((args, kwargs), tensors)
    tensors = named + tensors
    grad = torch.is_grad_enabled()
    needs = [grad and t.requires_grad for t in states + tensors]
    kinds = {"cpu": None, states[0].device.type: None}
    autocast = [f"({kind!r}, {torch.is_autocast_enabled(kind)}, {str(torch.get_autocast_dtype(kind)).removeprefix('torch.')!r})" for kind in kinds]
    pair = stack.readout == "pair"
    call = (
        f"{{'pair': {pair}, 'grad': {grad and any(needs)}, 'cache': {torch.is_autocast_cache_enabled()}, "
        f"'autocast': [{', '.join(autocast)}], 'arguments': {arguments}}}"
    )
    y, other, _ = torch.ops.revstep.stack(states, tensors, needs, stack._handle, call)
    return (y, other) if pair else y


def plain(parameters: list[Tensor]) -> bool:
    """Whether these are ordinary tensors; sharded ones (DTensor) are gathered by hooks that cannot stand in a graph."""
    return all(type(p) in (Tensor, nn.Parameter) for p in parameters)


def carried(tree: Any) -> bool:
    """Whether :func:`encode` can write these arguments."""
    if isinstance(tree, (tuple, list)):
        return type(tree) in (tuple, list) and all(carried(item) for item in tree)
    if isinstance(tree, dict):
        return type(tree) is dict and all(isinstance(key, str) and carried(item) for key, item in tree.items())
    return isinstance(tree, (Tensor, *_VALUES)) or (isinstance(tree, float) and math.isfinite(tree))


def encode(tree: Any, tensors: list[Tensor]) -> str:
    """Arguments as a Python literal; tensors are appended to ``tensors`` and stand in it by their number."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return f"('tensor', {len(tensors) - 1})"
    if isinstance(tree, dict):
        return "('dict', [" + "".join(f"({key!r}, {encode(item, tensors)}), " for key, item in tree.items()) + "])"
    if isinstance(tree, (tuple, list)):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return f"({kind!r}, [" + "".join(f"{encode(item, tensors)}, " for item in tree) + "])"
    return f"('value', {tree!r})"


def _outside(stack: nn.Module, x: Any, args: tuple, kwargs: dict) -> Any:
    return stack.evaluate(x, args, kwargs)


outside = torch.compiler.disable(
    _outside,
    reason="a ReversibleStack with opaque=False, with sharded parameters, or with arguments other than tensors, numbers, strings, None and "
    "tuples, lists and dicts of these, is run outside the graph; its blocks stay compiled where they were compiled one by one (stack.compile())",
)
