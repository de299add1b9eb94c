"""Bytes kept for backward, measured the same way for every trunk."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revstep.errors import ConfigError
from revstep.stack import Report, ReversibleStack


@dataclass(frozen=True)
class Kept:
    """What one forward pass of a trunk leaves behind for its backward pass.

    Attributes:
        autograd: bytes of the tensors autograd saved, each storage once, parameters not counted.
        tape: bytes that a reversible stack keeps beside autograd: checksums, carries, generator records; 0 for other trunks.
    """

    autograd: int
    tape: int

    @property
    def total(self) -> int:
        return self.autograd + self.tape

    def to_dict(self) -> dict:
        return asdict(self) | {"total": self.total}


def kept_for_backward(trunk: nn.Module, x: Tensor, context: Callable[[], Any] = contextlib.nullcontext) -> Kept:
    """Run ``trunk(x)`` forward and backward once and count.

    Saved-tensor hooks around the forward pass see what autograd saves; a reversible stack's report says what it keeps in
    all. Both see the states that the stack's gate node saves: they are counted once.

    Args:
        context: a factory of context managers entered around the forward pass, e.g. ``lambda: torch.autocast("cpu")``.

    Raises:
        ConfigError: a reversible stack that made no report (``checks=False``): its carries could not be counted.
    """
    stack = isinstance(trunk, ReversibleStack)
    return saved_by(lambda: trunk(x.detach().requires_grad_()), list(trunk.parameters()), lambda: trunk.report if stack else None, context, stack)


def saved_by(
    forward: Callable[[], Tensor], parameters: list[Tensor], report: Callable[[], Report | None], context: Callable[[], Any] = contextlib.nullcontext,
    reversible: bool = True,
) -> Kept:  # fmt: skip
    """The same for any ``forward()`` -> tensor, whose ``parameters`` are not counted; ``report()`` is that of its stack, None where it has none.

    Raises:
        ConfigError: ``reversible``, and backward made no new report.
    """
    addresses = {p.untyped_storage().data_ptr() for p in parameters}
    seen: dict[int, Tensor] = {}  # by storage; the tensor is held, so that its memory is not given to another

    def pack(t: Tensor) -> Tensor:
        seen.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    before = report()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), context():
        y = forward()
    autograd = sum(t.untyped_storage().nbytes() for address, t in seen.items() if address not in addresses)
    both = sum(t.numel() * t.element_size() for t in _gate_tensors(y))
    seen.clear()
    try:
        y.float().sum().backward()
    finally:
        for p in parameters:
            p.grad = None
    if not reversible:
        return Kept(autograd, 0)
    after = report()
    if after is None or after is before:
        raise ConfigError("the stack made no report in backward, so what it keeps cannot be counted: build it with checks=True")
    return Kept(autograd, after.bytes_saved - both)


def _gate_tensors(y: Tensor) -> list[Tensor]:
    """Tensors saved by the node through which a reversible stack hands its last states to its tape; none for other trunks."""
    nodes, visited = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        if node.name() == "GateBackward":
            return list(node.saved_tensors)
        visited.add(node)
        nodes += [parent for parent, _ in node.next_functions]
    return []
