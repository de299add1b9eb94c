"""Which leaf tensors a value depends on, read from its autograd graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Set
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError

#: The node at which the gradient of a leaf arrives.
_Leaf = torch._C._functions.AccumulateGrad
#: Key in the metadata of a node: the evaluation that met it.
_MET = "revstep.ode evaluation"

#: The number that the next autograd node of this thread gets.
next_node = torch._C._autograd._get_sequence_nr


def walk(value: Tensor, oldest: int = 0, met_old: Callable[[Any], None] | None = None) -> Iterator[Tensor]:
    """The leaf tensors that ``value`` depends on, each once.

    ``met_old(node)`` is called for nodes that were made before the one numbered ``oldest``.
    """
    root = value.grad_fn
    if root is None:
        if value.requires_grad:
            yield value  # it is a leaf itself
        return
    seen = {root}
    queue = [root]
    while queue:
        node = queue.pop()
        if type(node) is _Leaf:
            yield node.variable
            continue
        if node._sequence_nr() < oldest and met_old is not None:
            met_old(node)
        for child, _ in node.next_functions:
            if child is not None and child not in seen:
                seen.add(child)
                queue.append(child)


class Leaves:
    """The leaf tensors that acted on a run, collected from the graph of each evaluation.

    They are held weakly: a field may make leaves of its own in every call (an energy differentiated inside of
    it), which end with the evaluation and have nobody to receive a gradient.
    """

    def __init__(self) -> None:
        self._found: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
        self._evaluations = 0

    def __reduce__(self) -> tuple:
        return Leaves, ()  # in a copy of a finished run there is nothing to find any more

    def take(self, value: Tensor, oldest: int, own: Set[int]) -> None:
        """Add the leaves of one evaluation's value.

        Args:
            value: what the field returned, with its graph.
            oldest: :func:`next_node` from before the evaluation.
            own: ids of the leaves that the loop handed to the field.

        Raises:
            UnsupportedError: a tensor with a history from before the evaluation acts. The gradient
                would have to flow on outside of the run, which sees one evaluation at a time.
        """
        self._evaluations += 1
        count = self._evaluations
        strict = value.device.type == "cpu"

        def met_old(node: Any) -> None:
            # A device's backward pass numbers its nodes in a thread of its own: there, a field that
            # differentiates inside of itself makes new nodes with low numbers. Old ones come again.
            if strict or node.metadata.setdefault(_MET, count) != count:
                raise UnsupportedError(
                    "the field uses a tensor that was computed with gradients before this evaluation "
                    f"({node.name()}), outside of the integration or in an earlier call: pass it through "
                    "args= (as a tensor, or in tuples, lists and dicts), whose gradients flow, or compute it "
                    "anew in each call"
                )

        for leaf in walk(value, oldest, met_old):
            if id(leaf) not in own:
                self._found[id(leaf)] = leaf

    def alive(self) -> list[Tensor]:
        """Those that still exist, in the order in which they were met."""
        return list(self._found.values())
