from __future__ import annotations

from dataclasses import dataclass

from ._base import Claims, Coefficients, Scheme, finite


@dataclass(frozen=True)
class Leapfrog(Scheme):
    """Stormer-Verlet leapfrog for second-order equations (not the two-step midpoint rule, which is
    :class:`~revstep.Midpoint`).

    The step is ``p[j+1] = 2 p[j] - p[j-1] + h**2 f_j(p[j])``, on y'' = f(y). It is its own inverse with the
    previous and the next state exchanged, and needs no carry bits. Start ``euler`` takes an initial velocity
    of zero: ``p[1] = p[0] + h**2/2 f_0(p[0])``.

    Source: Gal et al., arXiv 2512.02056, section 2.6; Hairer, Lubich, Wanner, Geometric Numerical
    Integration, I.1.4.
    """

    h: float = 1.0

    name = "leapfrog"
    claims = Claims(
        equation="y'' = f(y)", order=2, symmetric=True, symplectic=True, evaluations=1,
        stability="-4 <= h**2 lambda <= 0, both ways",
        source="Gal et al. 2512.02056, 2.6",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "h", finite("Leapfrog h", self.h))

    def coefficients(self, layer: int) -> Coefficients:
        return Coefficients(-1.0, 2.0, self.h * self.h)

    def euler_gamma(self) -> float:
        return 0.5 * self.h * self.h
