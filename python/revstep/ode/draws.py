"""Random numbers drawn during a run, by the generators that every function can reach."""

from __future__ import annotations

import pickle
import random
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..recurrence.ambient import Generators, same_states


class Draws:
    """The global generators of torch, NumPy and Python as they are at construction."""

    def __init__(self, devices: Sequence[torch.device]):
        self._torch = Generators(devices)
        self._before = self._states()

    def _states(self) -> tuple[list[Tensor], bytes, tuple]:
        # Bytes, because NumPy's state is a nested dictionary with an array in it.
        global_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the one that fields may draw from
        return self._torch.get(), pickle.dumps(global_state), random.getstate()

    def moved(self) -> list[str]:
        """Whose generators are not where they were: of ``"torch"``, ``"NumPy"``, ``"random"``."""
        (torch_before, *before), (torch_now, *now) = self._before, self._states()
        alike = (same_states(torch_before, torch_now), *(a == b for a, b in zip(before, now)))
        return [name for name, same in zip(("torch", "NumPy", "random"), alike) if not same]


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors hold the same bytes (NaN is NaN, and -0 is not 0)."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return not a.numel() or torch.equal(*(x.detach().reshape(-1).view(torch.uint8) for x in (a, b)))
