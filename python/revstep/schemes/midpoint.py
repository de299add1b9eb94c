from __future__ import annotations

from dataclasses import dataclass

from ._base import Claims, Coefficients, Scheme, finite


@dataclass(frozen=True)
class Midpoint(Scheme):
    """Explicit two-step midpoint rule (the leapfrog of first-order equations; not the one-step Runge-Kutta
    midpoint).

    The step is ``p[j+1] = p[j-1] + 2 h f_j(p[j])``, on y' = f(y). Its inverse is ``p[j-1] = p[j+1] - 2 h
    f_j(p[j])``, and it needs no carry bits. Its second solution changes its sign from layer to layer and does
    not die out.

    Source: Gal et al., arXiv 2512.02056, section 2.4.
    """

    h: float = 0.5

    name = "midpoint"
    claims = Claims(
        equation="y' = f(y)", order=2, symmetric=True, symplectic=False, evaluations=1,
        stability="|h lambda| < 1 on the imaginary axis only; marginal (parasitic root -1) both ways",
        source="Gal et al. 2512.02056, 2.4",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "h", finite("Midpoint h", self.h))

    def coefficients(self, layer: int) -> Coefficients:
        return Coefficients(1.0, 0.0, 2.0 * self.h)

    def euler_gamma(self) -> float:
        return self.h
