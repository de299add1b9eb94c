"""Weights that FSDP2 has not gathered (it does when their module is called, and only then), and tensors spread over processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn


def _kind() -> type | None:
    fsdp = sys.modules.get("torch.distributed.fsdp")  # where nothing has imported it, nothing is sharded
    return getattr(fsdp, "FSDPModule", None)


def gathers(modules: Sequence[nn.Module]) -> bool:
    """``fully_shard`` was applied to one of them: weights are gathered, into memory
    of the engine's, while it runs.
    """
    kind = _kind()
    return kind is not None and any(isinstance(m, kind) for m in modules)


def ungathered(module: nn.Module) -> bool:
    """``fully_shard`` was applied to this very module, and its weights (those of submodules sharded by themselves apart) are not whole now."""
    kind = _kind()
    if kind is None or not isinstance(module, kind):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(p, DTensor) for p in _own(module, kind))


def spread(value: Any) -> bool:
    """A DTensor. Weights may be some; states are plain tensors, of which each process keeps its own."""
    kind = getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)
    return kind is not None and isinstance(value, kind)


def _own(module: nn.Module, kind: type) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    for child in module.children():
        if not isinstance(child, kind):
            yield from _own(child, kind)
