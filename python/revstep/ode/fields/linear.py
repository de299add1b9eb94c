"""Linear systems."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...errors import ConfigError
from ..native import LINEAR
from .base import BuiltIn, added


@dataclass(frozen=True)
class Linear(BuiltIn):
    """y' = A y, or q'' = A q; the sum over columns is taken in ascending order.

    Args:
        A: square matrix, rows of numbers, in 1 / time for y' = A y, in 1 / time**2 for q'' = A q.
        equation: ``"first"``, ``"second"``, or ``"separable"`` (q' = p, p' = A q; Hamiltonian when A is symmetric).
    """

    A: Sequence[Sequence[float]]
    equation: str = "first"

    kinds: ClassVar[tuple[str, ...]] = ("first", "second", "separable")
    number: ClassVar[int] = LINEAR

    def __post_init__(self) -> None:
        a = np.asarray(self.A, dtype=np.float64)
        if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.size or not np.isfinite(a).all():
            raise ConfigError(f"Linear A has shape {a.shape}, expected a square matrix of finite numbers")
        object.__setattr__(self, "A", tuple(tuple(row) for row in a.tolist()))
        self._check_equation()

    def params(self) -> tuple[float, ...]:
        return tuple(x for row in self.A for x in row)

    def check_event(self, event: tuple[int, ...]) -> None:
        if event != (len(self.A),):
            raise self._wrong(event, f"({len(self.A)},)")

    def force(self, t: Any, y: Any) -> Any:
        columns = list(zip(*self.A))
        make = y.new_tensor if isinstance(y, torch.Tensor) else np.asarray
        return added([make(column) * y[..., j : j + 1] for j, column in enumerate(columns)])

    def integrals(self) -> dict:
        symmetric = self.equation != "first" and self.A == tuple(zip(*self.A))
        return {"energy": self._energy} if symmetric else {}

    def _energy(self, q: Any, v: Any) -> Any:
        return 0.5 * (v * v).sum(-1) - 0.5 * (q * self.force(0.0, q)).sum(-1)
