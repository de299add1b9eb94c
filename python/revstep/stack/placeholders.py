"""Placeholders for the tensors that autograd saves inside a block, put there and asked
for through saved-tensor hooks.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedError
from .saved import Token, naming

STORE = "keep= counts layers from the last one, so give a number that includes this layer"


class Slot:
    """Placeholder for one tensor that autograd saved inside a block; while a
    block is measured, with the tensor.
    """

    __slots__ = ("held", "index", "layer", "tape")

    def __init__(self, tape: Any, layer: int, index: int):
        self.tape, self.layer, self.index = tape, layer, index
        self.held: Tensor | None = None


@contextlib.contextmanager
def saving(pack: Callable, unpack: Callable, name: str) -> Iterator[None]:
    if not torch._C._autograd._saved_tensors_hooks_is_enabled():
        raise UnsupportedError(
            "torch.autograd.graph.disable_saved_tensors_hooks is in force, and a reversible stack puts "
            "placeholders in place of saved tensors through such hooks: run forward and backward of the "
            "stack outside it, or store all layers with keep=len(blocks)"
        )
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        try:
            yield
        except RuntimeError as e:
            *_, (frame, _) = traceback.walk_tb(e.__traceback__)
            if frame.f_code is not _DISABLE.__wrapped__.__code__:
                raise
            raise UnsupportedError(
                f"{name} disables saved-tensor hooks (torch.func.grad, vjp, jacrev and hessian do), through "
                "which its activations are replaced by placeholders: use torch.func.jvp there, or store this "
                f"layer: {STORE}"
            ) from e


_DISABLE = torch.autograd.graph.disable_saved_tensors_hooks


def unpack(slot: Slot) -> Tensor:
    if naming.active:
        raise RuntimeError("a placeholder of another graph")
    if slot.tape is None:
        return slot.held
    return slot.tape.saved(slot.layer, slot.index)


def unpack_recomputed(token: Token) -> Tensor:
    if naming.active:
        token.asked.append(token.index)
        return token.held
    raise UnsupportedError(f"a block differentiates inside its own forward pass and must be stored: {STORE}")
