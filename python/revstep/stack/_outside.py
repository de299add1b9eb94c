"""What a block keeps alive beside the tensors that autograd saves for it.

It may keep tensors on a function's ``ctx``, on the module, in a hook's list or in a closure. A stack
replaces saved tensors by placeholders, and that is all it can replace: whatever else holds on to an
activation holds one a layer.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from ..errors import UnsupportedError
from ._modes import ThreadedMode
from ._saved import components

_aten = torch.ops.aten
#: What these take is as new as what they give: ``torch.tensor(...)`` passes through them.
_FRESH = {_aten.lift_fresh.default, _aten.lift_fresh_copy.default}


class Outside:
    """Around one evaluation of a block; then, while the graph of its output is alive, :meth:`nbytes`.

    Every operator's output is followed by a weak reference to its storage. A storage that an operator was
    given before any had made it (a weight, an argument, a constant of the program) is not the block's
    product and is not counted.

    Args:
        leaves: tensors whose casts autocast may keep in its cache: the parameters. The cache is autocast's,
            so those casts are not counted.
        placeholders: put placeholders in place of the tensors that autograd saves. False: the caller has
            hooks of its own that do.

    Raises:
        UnsupportedError: within, where the block asks for a saved tensor during the evaluation.
    """

    def __init__(self, leaves: Iterable[Tensor] = (), placeholders: bool = True):
        self._leaves: set[int] = set()
        self.add_leaves(leaves)
        self._placeholders = placeholders
        self._made: dict[int, StorageWeakRef] = {}
        # References too, though nobody asks for them: an address that has one is given to no other storage.
        self._foreign: dict[int, StorageWeakRef] = {}
        self._entered = contextlib.ExitStack()

    def add_leaves(self, leaves: Iterable[Tensor]) -> None:
        """More tensors whose casts are autocast's."""
        self._leaves |= set().union(*map(_addresses, leaves))

    def __enter__(self) -> Outside:
        with contextlib.ExitStack() as entered:
            entered.enter_context(_Follow(self))
            if self._placeholders:
                entered.enter_context(torch.autograd.graph.saved_tensors_hooks(_forget, _refuse))
            self._entered = entered.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._entered.__exit__(*error)

    def nbytes(self, exclude: Any = ()) -> int:
        """Bytes made inside that are still alive, each storage once.

        ``exclude``: tensors, in any containers, that the caller keeps anyway, such as auxiliary outputs. To
        see whether the block holds on to its input or its output, let go of both and keep the output's
        ``grad_fn``, which keeps the graph.
        """
        if not (found := self._alive(exclude)):
            return 0
        del found
        gc.collect()  # what only a cycle of references holds is not kept
        return sum(storage.nbytes() for storage in self._alive(exclude))

    def _alive(self, exclude: Any) -> list[torch.UntypedStorage]:
        own = set().union(*(_addresses(t) for t in tree_leaves(exclude) if isinstance(t, Tensor)))
        others = (ref for address, ref in self._made.items() if address not in own)
        held = (torch.UntypedStorage._new_with_weak_ptr(ref.cdata) for ref in others)
        return [storage for storage in held if storage is not None]

    def _saw(self, func: Any, given: Any, out: Any) -> None:
        for t in () if func in _FRESH else _tensors(given):
            _follow(t, self._foreign, self._made)
        made = self._foreign if self._is_cached_cast(func, given) else self._made
        for t in _tensors(out):
            _follow(t, made, self._foreign if made is self._made else self._made)

    def _is_cached_cast(self, func: Any, given: Any) -> bool:
        if func is not _aten._to_copy.default or not self._leaves or not torch.is_autocast_cache_enabled():
            return False
        return bool(_addresses(given[0][0]) & self._leaves)


class _Follow(ThreadedMode):
    def __init__(self, outside: Outside):
        super().__init__()
        self.outside = outside

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():  # a subclass is asked for its memory and nothing else
            self.outside._saw(func, (args, kwargs), out)
        return out


def _follow(t: Tensor, seen: dict[int, StorageWeakRef], known: dict[int, StorageWeakRef]) -> None:
    for storage in _storages(t):
        if (address := storage._cdata) not in seen and address not in known:
            seen[address] = StorageWeakRef(storage)


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (t for t in tree_leaves(tree) if isinstance(t, Tensor))


def _addresses(t: Tensor) -> set[int]:
    return {storage._cdata for storage in _storages(t)}


def _storages(t: Tensor) -> list[torch.UntypedStorage]:
    """The memory behind a tensor: one storage, or those of its parts."""
    try:
        return [part.untyped_storage() for part in components(t)]
    except RuntimeError:  # an opaque layout, or a tensor of a transform
        return []


def _forget(_: Tensor) -> None:
    """In place of a saved tensor, nothing."""


def _refuse(_: None) -> Tensor:
    raise UnsupportedError(
        "the block differentiates inside its own forward pass, where its saved tensors are placeholders: "
        "torch.func.jvp there, or measure it with placeholders=False"
    )
