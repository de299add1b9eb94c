"""Any explicit Runge-Kutta step made reversible (McCallum and Foster)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...errors import ConfigError
from ...schemes import Claims
from ...schemes._base import reversible
from .. import tableaus
from .._equations import FIRST
from ..tableaus import Tableau
from ._base import F, Method, Micro, Slots


@dataclass(frozen=True)
class ReversibleRK(Method):
    """An explicit base step Psi_h turned into a reversible method of the same order on y' = f(t, y).

    ``y' = lam y + (1-lam) z + Psi_h(t_n, z);  z' = z - Psi_{-h}(t_{n+1}, y')``, y = z = y0 at the start, read
    out as y. Psi is the increment of the base step. ``lam`` couples the two copies: below 1 it damps their
    difference forwards (wider stability region) and the float inverse amplifies by 1/lam a step.
    Algebraically reversible for any base step; bit-exact in fixed point, with one carry bit an element and
    step for 1/2 <= lam < 1 and none for lam = 1.

    Args:
        base: name of a tableau (:mod:`revstep.ode.tableaus`) or a Tableau.
        lam: 2**-8 <= lam <= 1, snapped to 2**-24.

    Source: McCallum and Foster, Efficient, Accurate and Stable Gradients for Neural ODEs (2024).
    """

    base: str | Tableau = "rk4"
    lam: float = 0.5

    equations = (FIRST,)
    apart_limit = 1.0

    def __post_init__(self) -> None:
        table = tableaus.get(self.base) if isinstance(self.base, str) else self.base
        object.__setattr__(self, "tableau", table)
        object.__setattr__(self, "lam", reversible("ReversibleRK lam", self.lam))
        if not 0 < self.lam <= 1:
            raise ConfigError(f"ReversibleRK lam = {self.lam}: expected 0 < lam <= 1")

    @property
    def name(self) -> str:  # type: ignore[override]
        """``reversible_`` and the tableau's name."""
        return f"reversible_{self.tableau.name}"

    def claims(self, equation: str) -> Claims:
        return Claims(
            equation=equation,
            order=self.tableau.order,
            symmetric=False,
            symplectic=False,
            evaluations=2 * len(self.tableau.b),
            stability="spectral radius of the coupled step at most 1; non-empty for lam < 1",
            source="McCallum and Foster (2024)",
        )

    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        return (
            Micro(0, self.lam, 1.0 - self.lam, 1.0, 0, F, 0.0, 1),
            Micro(1, 1.0, 0.0, -1.0, 0, F, 1.0, -1),
        )

    def copies(self, equation: str) -> bool:
        return True

    def parasite(self, equation: str) -> str:
        return (
            f"{self.name} carries a second copy z of the state; each step damps its distance from y by lam ="
            f" {self.lam:.4g} only, which is less than it grows where the flow contracts: take a smaller h,"
            f" or a smaller lam, as in ode.ReversibleRK({self.tableau.name!r},"
            f" lam={min(0.5, self.lam / 2):.4g})"
        )

    def begin(self, equation: str, y0: Any, h: Any) -> Slots:
        return y0, y0

    def read(
        self, equation: str, n: int, slots: Slots, t: Any, h: Any, f: Callable[..., Tensor]
    ) -> tuple[Tensor, ...]:
        return (slots[0],)
