"""How a run on tensors asks its field, and what it finds out by asking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import UnsupportedError
from ._graph import Leaves, next_node
from ._loop import Walker
from ._problem import Problem
from ._starts import same_bits
from .methods._base import Micro


class LeafActs(Exception):
    """A value came with a graph in a run that keeps none."""


class Arguments:
    """The field's extra arguments, and which of them are differentiated.

    Attributes:
        given: as they were handed to the run.
        tensors: those that require a gradient, in the order of the tree.
    """

    def __init__(self, given: Sequence[Any]):
        self.given = tuple(given)
        self._leaves, self._spec = tree_flatten(self.given)
        self._at = [i for i, x in enumerate(self._leaves) if isinstance(x, Tensor) and x.requires_grad]
        self.tensors = [self._leaves[i] for i in self._at]

    def exchanged(self, tensors: Sequence[Tensor]) -> tuple:
        """The arguments with ``tensors`` in the places of the differentiable ones."""
        leaves = list(self._leaves)
        for i, t in zip(self._at, tensors):
            leaves[i] = t
        return tree_unflatten(leaves, self._spec)


class Evaluations:
    """The evaluations of one run.

    They are made in the caller's grad mode. In a run that keeps no graph the field sees tensors without a
    gradient. In one that keeps a graph, each evaluation builds it as backward will, so that no other kernel
    is chosen there.

    Args:
        problem: the run.
        arguments: the field's extra arguments.
        graph: evaluations build a graph.
        grad_enabled: whether autograd records where the run is called. Then a value that requires a gradient
            although the run keeps no graph raises :class:`LeafActs`.

    Attributes:
        args: what the field is called with.
        leaves: what acted so far, of a run with a graph.
    """

    def __init__(self, problem: Problem, arguments: Arguments, graph: bool, grad_enabled: bool):
        self.problem = problem
        self.graph = graph
        self.grad_enabled = grad_enabled
        # Leaves of their own: what the caller gave may have a history.
        own = [t.detach().requires_grad_() for t in arguments.tensors] if graph else []
        self.args = arguments.exchanged(own) if graph else arguments.given
        self.leaves = Leaves()
        self._own = {id(t) for t in own}
        self._asked: set[int] = set()

    def argument(self, x: Tensor) -> Tensor:
        """``x`` as the field sees it: another tensor object each time, which it may mark as it likes."""
        # An inference tensor would not show a change in place.
        x = x.clone() if x.is_inference() else x.detach()
        return x.requires_grad_() if self.graph else x

    def again(self, walker: Walker, micro: Micro, n: int, x: Tensor) -> Tensor:
        """Phi of a micro-step as in the run, without asking what acts."""
        t, h = walker.time(micro, n), self.problem.h
        return self.problem.phi(micro, self.argument(x), t, h, walker.args).detach()

    def forward(self, walker: Walker, micro: Micro, n: int, x: Tensor) -> Tensor:
        """Phi of a micro-step on the way up.

        Raises:
            LeafActs: see above. UnsupportedError: the field is random, or uses a tensor with a history.
        """
        value = self._looked_at(walker, micro, n, x)
        if micro.field not in self._asked:
            self._asked.add(micro.field)
            value = value.clone()  # the field may return the same buffer again
            if not same_bits(value, self._looked_at(walker, micro, n, x)):
                raise UnsupportedError(
                    f"the field is random or keeps hidden state: asked twice at step {n} with the same "
                    "arguments, it gave other bits the second time (it draws random numbers, changes what it "
                    "reads, or uses a kernel that is not deterministic), so that a step could not be undone. "
                    "Draw before the integration and pass the numbers in args=; let what changes be a "
                    "part of the state; for kernels, torch.use_deterministic_algorithms(True)"
                )
        return value

    def first(self, walker: Walker, micro: Micro, n: int, x: Tensor) -> Tensor:
        """Phi of a micro-step on the way up, for who compares it with something else than a second value.

        Raises:
            LeafActs, UnsupportedError: as :meth:`forward`.
        """
        return self._looked_at(walker, micro, n, x).clone()

    def _looked_at(self, walker: Walker, micro: Micro, n: int, x: Tensor) -> Tensor:
        oldest = next_node()
        x = self.argument(x)
        value = self.problem.phi(micro, x, walker.time(micro, n), self.problem.h, walker.args)
        if value.requires_grad and self.graph:
            self.leaves.take(value, oldest, self._own | {id(x)})
        elif value.requires_grad and self.grad_enabled:
            raise LeafActs
        return value.detach()
