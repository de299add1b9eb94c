"""Bytes kept for backward, measured the same way for every trunk."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from revstep.errors import AmplificationWarning, ConfigError, RevstepError
from revstep.lm._architectures import Block, make_trunk
from revstep.lm._parallel import autocast
from revstep.stack import Report, ReversibleStack

from .settings import Settings


@dataclass(frozen=True)
class Kept:
    """What one forward pass of a trunk leaves behind for its backward pass.

    Attributes:
        autograd: bytes of the tensors autograd saved, each storage once, parameters not counted.
        tape: bytes that a reversible stack keeps beside autograd: checksums, carries, generator records; 0
            for other trunks.
    """

    autograd: int
    tape: int

    @property
    def total(self) -> int:
        return self.autograd + self.tape

    def to_dict(self) -> dict:
        return asdict(self) | {"total": self.total}


def kept_for_backward(
    trunk: nn.Module, x: Tensor, context: Callable[[], Any] = contextlib.nullcontext
) -> Kept:
    """Run ``trunk(x)`` forward and backward once and count.

    Saved-tensor hooks around the forward pass see what autograd saves; a reversible stack's report says what
    it keeps in all. Both see the states that the stack's gate node saves: they are counted once.

    Args:
        context: a factory of context managers entered around the forward pass, e.g. ``lambda:
            torch.autocast("cpu")``.

    Raises:
        ConfigError: a reversible stack that made no report (``checks=False``): its carries could not be
            counted.
    """
    stack = isinstance(trunk, ReversibleStack)
    return saved_by(
        lambda: trunk(x.detach().requires_grad_()),
        list(trunk.parameters()),
        lambda: trunk.report if stack else None,
        context,
        stack,
    )


def saved_by(
    forward: Callable[[], Tensor],
    parameters: list[Tensor],
    report: Callable[[], Report | None],
    context: Callable[[], Any] = contextlib.nullcontext,
    reversible: bool = True,
) -> Kept:
    """The same for any ``forward()`` -> tensor, whose ``parameters`` are not counted; ``report()`` is that of
    its stack, None where it has none.

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
        raise ConfigError(
            "the stack made no report in backward, so what it keeps cannot be counted: build it with"
            " checks=True"
        )
    return Kept(autograd, after.bytes_saved - both)


def _gate_tensors(y: Tensor) -> list[Tensor]:
    """Tensors saved by the node through which a reversible stack hands its last states to its tape; none for
    other trunks.
    """
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


# ------------------------------------------------------------------------------------------------------------
# Bytes kept for backward against depth: plain, each block checkpointed, and each reversible scheme. Measured,
# not computed.

DEPTHS = (4, 8, 16, 32, 64)
#: Sequences and tokens of one: small, since the ratios do not depend on them.
SHAPE = (1, 64)
#: The block's weights, of nn.Linear's own initialisation, times this: 64 steps of Leapfrog add some 2000
#: increments up.
WEIGHTS = 0.1


def memory_by_depth(settings: Settings, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """``{"shape", "depths", "bytes": {trunk: [...]}, "failures": {trunk: why}}``; one block is used at every
    depth, so that only activations can grow.

    A scheme given with a list of coefficients has one depth only and is left out.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    x = torch.randn(*SHAPE, settings.width, generator=generator).to(device)
    block = Block(settings.model(vocab=2)).to(device)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(WEIGHTS)
    found: dict[str, list[int]] = {}
    failures: dict[str, str] = {}
    for name in ("plain", "checkpoint", *settings.reversible()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AmplificationWarning)
                trunks = [make_trunk([block] * layers, name) for layers in DEPTHS]
        except ConfigError:
            continue
        try:
            found[name] = [
                kept_for_backward(trunk, x, lambda: autocast(device, dtype)).total for trunk in trunks
            ]
        except RevstepError as error:
            failures[name] = f"{type(error).__name__}: {error}"
    return {"shape": [*SHAPE, settings.width], "depths": list(DEPTHS), "bytes": found, "failures": failures}
