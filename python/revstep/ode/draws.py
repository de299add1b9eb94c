"""Random numbers drawn during a run, by the generators that every function can reach."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..stack.replay import Generators, same_states


class Draws:
    """The global generators of torch, NumPy and Python as they are at construction."""

    def __init__(self, devices: Sequence[torch.device]):
        self._torch = Generators(devices)
        self._before = self._states()

    def _states(self) -> dict[str, Any]:
        numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the one that fields may draw from
        return {"torch": self._torch.get(), "NumPy": numpy_state, "random": random.getstate()}

    def moved(self) -> list[str]:
        """Whose generators are not where they were: of ``"torch"``, ``"NumPy"``, ``"random"``."""
        now = self._states()
        alike = {
            "torch": same_states(self._before["torch"], now["torch"]),
            "NumPy": _same(self._before["NumPy"], now["NumPy"]),
            "random": self._before["random"] == now["random"],
        }
        return [name for name, same in alike.items() if not same]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(np.array_equal(a, b))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes (NaN is NaN, and -0 is not 0)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return not a.numel() or torch.equal(*(x.detach().reshape(-1).view(torch.uint8) for x in (a, b)))
