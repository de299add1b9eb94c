"""How many layers' graphs a memory budget holds."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from ..errors import ConfigError
from .parts import components


def budget_bytes(budget: int | float, device: torch.device) -> int:
    """The budget in bytes, now: a fraction is of what is free on ``device``.

    Raises:
        ConfigError: a fraction on a device that does not say what is free.
    """
    return budget if isinstance(budget, int) else int(budget * free_bytes(device))


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated: for an accelerator with what torch's allocator holds unused; for the CPU within the cgroup's limit."""
    if device.type == "cpu":
        found = [n for n in (_available(), _below_cgroup_limit()) if n is not None]
        if found:
            return min(found)
    elif hasattr(module := getattr(torch, device.type, None), "mem_get_info"):
        return module.mem_get_info(device)[0] + module.memory_reserved(device) - module.memory_allocated(device)
    raise ConfigError(f"memory_budget is a fraction, but this system does not say how much memory is free on {device}: give it in bytes")


def _available(path: Path = Path("/proc/meminfo")) -> int | None:
    try:
        return next(int(line.split()[1]) * 1024 for line in path.read_text().splitlines() if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def _below_cgroup_limit(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    for limit, used in (("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        try:
            return max(0, int((root / limit).read_text()) - int((root / used).read_text()))
        except (OSError, ValueError):  # not there, or "max": no limit
            continue
    return None


def storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address and bytes of every storage behind these tensors, which are alive."""
    behind = [part.untyped_storage() for t in tensors for part in components(t)]
    return {storage.data_ptr(): storage.nbytes() for storage in behind}
