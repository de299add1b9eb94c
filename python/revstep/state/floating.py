"""Float states: the inverse is exact in real arithmetic only, and its rounding drift is measured and reported."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..errors import ConfigError
from .base import StateFormat


@dataclass(frozen=True)
class Float(StateFormat):
    """States in ordinary floating point. Reconstruction is *algebraic*: every backward pass measures its error.

    Args:
        dtype: torch.float32 (default) or torch.float64.
        max_error: relative error of the rebuilt input (max norm) above which backward warns; its gradients are then
            those of another network. The measured error is always in ``stack.report``.

    Raises:
        ConfigError: on a dtype that is neither.
    """

    dtype: torch.dtype = torch.float32
    max_error: float = 1e-3
    exact = False
    frac_bits = 0
    on_nonfinite = "propagate"

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"Float(dtype={self.dtype!r}): expected torch.float32 or torch.float64 (a narrower state loses the input within a few layers)")

    def __str__(self) -> str:
        return f"Float({self.dtype})"

    @property
    def limit(self) -> float:
        return math.inf
