"""The Fermi-Pasta-Ulam-Tsingou chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ..native import FPUT
from .base import BuiltIn, number


@dataclass(frozen=True)
class Fput(BuiltIn):
    """A chain of unit masses with fixed ends: q[i]'' = s(r[i+1]) - s(r[i]), r[i] = q[i] - q[i-1], s(r) = r + alpha r**2 + beta r**3.

    V = sum over the n + 1 springs of r**2 / 2 + alpha r**3 / 3 + beta r**4 / 4.

    Args:
        alpha: strength of the cubic term of the energy, in 1 / length; masses and springs are 1.
        beta: strength of the quartic term, in 1 / length**2.
        equation: ``"separable"`` or ``"second"``.

    Source: Fermi, Pasta, Ulam (and Tsingou), Los Alamos report LA-1940 (1955).
    """

    alpha: float = 0.25
    beta: float = 0.0
    equation: str = "separable"

    kinds: ClassVar[tuple[str, ...]] = ("separable", "second")
    number: ClassVar[int] = FPUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", number("Fput alpha", self.alpha))
        object.__setattr__(self, "beta", number("Fput beta", self.beta))
        self._check_equation()

    def params(self) -> tuple[float, ...]:
        return (self.alpha, self.beta)

    def _springs(self, q: Any) -> Any:
        """(..., n + 1): how far each spring is stretched."""
        if isinstance(q, torch.Tensor):
            ends = torch.nn.functional.pad(q, (1, 1))
        else:
            ends = np.pad(q, [(0, 0)] * (q.ndim - 1) + [(1, 1)])
        return ends[..., 1:] - ends[..., :-1]

    def force(self, t: Any, q: Any) -> Any:
        r = self._springs(q)
        s = r * (1.0 + r * (self.alpha + self.beta * r))
        return s[..., 1:] - s[..., :-1]

    def energy(self, q: Any, v: Any) -> Any:
        r = self._springs(q)
        return 0.5 * (v * v).sum(-1) + (r * r * (0.5 + r * (self.alpha / 3.0 + self.beta / 4.0 * r))).sum(-1)

    def integrals(self) -> dict:
        return {"energy": self.energy}
