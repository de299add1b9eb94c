"""What a block is given and what it returns. Arguments of a block that is evaluated twice: what can be read only
once is refused, what can be emptied is copied for each evaluation.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_map

from ..errors import UnsupportedError

_COPIED = (set, bytearray)
_CONTAINERS = (list, dict, set, bytearray, deque, defaultdict, OrderedDict)


def fresh(tree: Any) -> Any:
    """The same leaves in new containers, so that an evaluation that takes something out of one
    does not take it from the next.
    """
    if not _holds_containers(tree):
        return tree
    return tree_map(lambda leaf: leaf.copy() if isinstance(leaf, _COPIED) else leaf, tree)


def _holds_containers(tree: Any) -> bool:
    values = tree.values() if isinstance(tree, dict) else tree
    return any(isinstance(v, _CONTAINERS) or (isinstance(v, tuple) and _holds_containers(v)) for v in values)


def refuse_iterators(name: str, args: tuple, kwargs: dict) -> None:
    """An iterator is used up by the first evaluation of the first block.

    Raises:
        UnsupportedError: an argument, or something in one, is an iterator; it is named.
    """
    plain = (Tensor, bool, int, float, str, torch.Size)
    if all(v is None or isinstance(v, plain) for v in (*args, *kwargs.values())):
        return  # nearly always
    for path, leaf in tree_flatten_with_path((args, kwargs))[0]:
        if isinstance(leaf, Iterator) and not isinstance(leaf, Tensor):
            where = f"argument {path[1].idx}" if path[0].idx == 0 else f"argument {path[1].key!r}"
            inside = keystr(path[2:])
            raise UnsupportedError(
                f"{where} of {name}{f' (at {inside})' if inside else ''} is a {type(leaf).__name__}, which "
                "can be read only once; a block is evaluated again in backward: pass a list or a tensor, and "
                "let each block take its own entry by its depth"
            )


def increment(out: Any) -> tuple[Any, tuple]:
    """What a block returned: the increment, and the rest."""
    return (out[0], tuple(out[1:])) if isinstance(out, (tuple, list)) and out else (out, ())
