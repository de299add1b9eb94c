"""A stack under torch.compile: its blocks compiled one by one, and what a compiler around it sees of it.

Imported where something is compiled only, for it loads dynamo.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

#: Leaves of a call's arguments that an operator carries as text, and those it carries as tensors of one
#: element, for they may be symbols of the graph.
_TEXT, _NUMBERS = (type(None), bool, str), (int, float)
_sites = itertools.count()


def forward(stack: nn.Module, x: Any, args: tuple, kwargs: dict) -> Any:
    """``stack(x, *args, **kwargs)`` as dynamo traces it."""
    states = list(x) if isinstance(x, (tuple, list)) else [x]
    weights = list(stack.parameters())
    named = [*weights, *stack.buffers()]
    if (
        not stack.opaque
        or not all(isinstance(t, Tensor) for t in states)
        or len(states) not in (1, 2)
        or not carried((args, kwargs))
        or not plain(named)
    ):
        return outside(stack, x, args, kwargs)
    tensors: list[Tensor] = []
    arguments = encode((args, kwargs), tensors)
    tensors = named + tensors
    grad = torch.is_grad_enabled()
    needs = [grad and t.requires_grad for t in states + tensors]
    kinds = {"cpu": None, states[0].device.type: None}
    autocast = [
        f"({kind!r}, {torch.is_autocast_enabled(kind)},"
        f" {str(torch.get_autocast_dtype(kind)).removeprefix('torch.')!r})"
        for kind in kinds
    ]
    pair = stack.readout == "pair"
    call = (
        f"{{'pair': {pair}, 'buffers': ({len(weights)}, {len(named)}), 'grad': {grad and any(needs)},"
        f" 'cache': {torch.is_autocast_cache_enabled()}, "
        f"'autocast': [{', '.join(autocast)}], 'arguments': {arguments}}}"
    )
    y, other, _ = torch.ops.revstep.stack(
        states[0], states[1] if len(states) == 2 else None, tensors, needs, stack._handle, _site(), call
    )
    return (y, other) if pair else y


@torch.compiler.assume_constant_result
def _site() -> int:
    """Another number for every call in a graph."""
    return next(_sites)


def plain(parameters: list[Tensor]) -> bool:
    """Whether these are ordinary tensors; sharded ones (DTensor) are gathered by hooks that cannot stand in a
    graph.
    """
    return all(type(p) in (Tensor, nn.Parameter) for p in parameters)


def carried(tree: Any) -> bool:
    """Whether :func:`encode` can write these arguments."""
    if isinstance(tree, (tuple, list)):
        return type(tree) in (tuple, list) and all(carried(item) for item in tree)
    if isinstance(tree, dict):
        return type(tree) is dict and all(
            isinstance(key, str) and carried(item) for key, item in tree.items()
        )
    return isinstance(tree, (Tensor, *_TEXT, *_NUMBERS))


def encode(tree: Any, tensors: list[Tensor]) -> str:
    """Arguments as a Python literal; tensors and numbers are appended to ``tensors`` and stand in it by their
    index. See :func:`._operator.decode`.
    """
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return f"('tensor', {len(tensors) - 1})"
    if isinstance(tree, dict):
        return (
            "('dict', ["
            + "".join(f"({key!r}, {encode(item, tensors)}), " for key, item in tree.items())
            + "])"
        )
    if isinstance(tree, (tuple, list)):
        kind = "tuple" if isinstance(tree, tuple) else "list"
        return f"({kind!r}, [" + "".join(f"{encode(item, tensors)}, " for item in tree) + "])"
    if not isinstance(tree, _TEXT):
        tensors.append(
            torch.tensor(tree, dtype=torch.float64 if isinstance(tree, float) else torch.int64, device="cpu")
        )
        return f"('number', {len(tensors) - 1})"
    return f"('text', {tree!r})"


def compile_blocks(blocks: Sequence[nn.Module], args: tuple, options: dict) -> None:
    """``block.compile(*args, **options)`` for each of them.

    dynamo keeps what it compiled by code object, so blocks of one class share it. Where blocks differ in an
    attribute, a graph that holds for a later one (a float made a variable) can hold for an earlier one too,
    whose backward would then run another graph than its forward did: such blocks get graphs of their own, or,
    where torch cannot do that (2.9), graphs without variables.
    """
    can_isolate = "isolate_recompiles" in inspect.signature(torch.compile).parameters
    apart = {"isolate_recompiles": True} if can_isolate else {"dynamic": False}
    kinds: dict[type, dict[int, nn.Module]] = {}
    for block in blocks:
        kinds.setdefault(type(block), {})[id(block)] = block
    for kind in kinds.values():
        own = {} if _alike(list(kind.values())) else apart
        for block in kind.values():
            block.compile(*args, **own | options)


def _alike(blocks: Sequence[nn.Module]) -> bool:
    first = _constants(blocks[0])
    return all(_constants(block) == first for block in blocks[1:])


def _constants(block: nn.Module) -> list:
    """What a graph may be specialised to: the attributes of a block's modules that are plain values."""
    return [
        (
            name,
            type(module),
            {
                key: value
                for key, value in vars(module).items()
                if isinstance(value, (*_TEXT, *_NUMBERS)) and key != "training"
            },
        )
        for name, module in block.named_modules()
    ]


def _evaluate(stack: nn.Module, x: Any, args: tuple, kwargs: dict) -> Any:
    return stack.evaluate(x, args, kwargs)


outside = torch.compiler.disable(
    _evaluate,
    reason=(
        "a ReversibleStack with opaque=False, with sharded parameters, or with arguments other than tensors,"
        " numbers, strings, None and tuples, lists and dicts of these, is run outside the graph; its blocks"
        " stay compiled where they were compiled one by one (stack.compile())"
    ),
)
