"""How a layer is evaluated under a memory budget (``keep="auto"`` with ``tile="auto"``): whole where the
budget holds its graph, and otherwise with its tokenwise halves by the largest tiles with which it does.

A tile decides about the last bits of sums, so it has to be known before the first layer of a pass is
evaluated. The layer is therefore weighed first: evaluated once more, with its saved tensors let go as they
come. That is done once for each shape of the input, and from then on the answer is known.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from .._recurrence.ambient import Generators
from .._values import size
from ..errors import FallbackWarning
from ._saved import components
from ._tiles import TILES, declared


@dataclass(frozen=True)
class Weight:
    """Bytes of one layer's graph.

    Attributes:
        whole: all that autograd saves, weights and arguments apart.
        halves: of these what its tokenwise halves save, their inputs apart.
        tokens: of the input.
    """

    whole: int
    halves: int
    tokens: int

    def by_tiles(self, tile: int) -> int:
        """Bytes where one tile of the halves exists at a time."""
        return self.whole - self.halves + self.halves * min(tile, self.tokens) // self.tokens


def chosen(weight: Weight, budget: int) -> int:
    """Tokens of a tile, 0: whole. Where nothing fits, the smallest tile, with a warning."""
    smaller = [t for t in sorted(TILES, reverse=True) if t < weight.tokens]
    if weight.whole <= budget or not smaller:
        return 0
    fitting = [t for t in smaller if weight.by_tiles(t) <= budget]
    if not fitting:
        warnings.warn(
            f"memory_budget is {size(budget)}, and the graph of one layer takes {size(weight.whole)}, with"
            f" its MLP by tiles of {smaller[-1]} tokens {size(weight.by_tiles(smaller[-1]))}: tiles of"
            f" {smaller[-1]} are taken, and backward will hold more than the budget. Expected a larger"
            " budget, or fewer tokens a step",
            FallbackWarning,
            stacklevel=2,
        )
    return fitting[0] if fitting else smaller[-1]


def weigh(layer: Sequence[nn.Module], x: Tensor, args: tuple, kwargs: dict, generators: Generators) -> Weight:
    """The functions of one layer, each evaluated on a tensor like ``x``. Random generators and buffers are
    afterwards as before.
    """
    scale = _Scale([t for m in layer for t in (*m.parameters(), *m.buffers())], (args, kwargs))
    buffers = [(b, b.clone()) for m in layer for b in m.buffers()]
    with (
        generators.at(generators.get()),
        torch.enable_grad(),
        torch.autograd.graph.saved_tensors_hooks(scale.put, _gone),
    ):
        for k, module in enumerate(layer):
            like = x.detach().clone() if k else x.detach()  # each half of a layer has a state of its own
            with scale.watching(declared(module)):
                module(like.requires_grad_(x.is_floating_point()), *args, **kwargs)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return Weight(scale.whole, scale.halves, max(1, x.numel() // max(1, x.shape[-1])))


class _Scale:
    """Adds up storages that autograd saves, each once."""

    def __init__(self, weights: Sequence[Tensor], arguments: Any):
        self.whole = self.halves = 0
        self._inside = 0
        leaves = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
        # A weak reference keeps the address from being given to another storage.
        self._seen: dict[Any, StorageWeakRef] = {}
        for t in (*weights, *leaves):
            self._new(t)

    def put(self, t: Tensor) -> None:
        nbytes = self._new(t)
        self.whole += nbytes
        if self._inside:
            self.halves += nbytes

    def _new(self, t: Tensor) -> int:
        found = 0
        for part in components(t):
            storage = part.untyped_storage()
            ref = StorageWeakRef(storage)
            if ref.cdata not in self._seen:
                self._seen[ref.cdata] = ref
                found += storage.nbytes()
        return found

    @contextlib.contextmanager
    def watching(self, halves: Sequence[nn.Module]) -> Iterator[None]:
        """Inside, what these modules save is told from the rest."""

        def enter(module: nn.Module, given: tuple) -> None:
            for t in given:
                if isinstance(t, Tensor):
                    self.whole += self._new(t)  # a half by tiles saves its input too
            self._inside += 1

        def leave(*_: Any) -> None:
            self._inside -= 1

        hooks = [h.register_forward_pre_hook(enter) for h in halves]
        hooks += [h.register_forward_hook(leave, always_call=True) for h in halves]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _gone(_: None) -> Tensor:
    raise RuntimeError("this graph was made to be weighed, and nothing of it was kept")
