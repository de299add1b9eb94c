"""One body in the field of a fixed centre."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from ..native import KEPLER
from .base import BuiltIn, added, components, number, sqrt, stack


@dataclass(frozen=True)
class Kepler(BuiltIn):
    """q'' = -mu q / |q|**3, q in 2 or 3 dimensions (the last axis); H = |v|**2 / 2 - mu / |q|. :class:`NBody` moves both bodies.

    Args:
        mu: gravitational parameter G M, in length**3 / time**2, positive.
        equation: ``"separable"`` or ``"second"``.
    """

    mu: float = 1.0
    equation: str = "separable"

    kinds: ClassVar[tuple[str, ...]] = ("separable", "second")
    number: ClassVar[int] = KEPLER

    def __post_init__(self) -> None:
        object.__setattr__(self, "mu", number("Kepler mu", self.mu, positive=True))
        self._check_equation()

    def params(self) -> tuple[float, ...]:
        return (self.mu,)

    def check_event(self, event: tuple[int, ...]) -> None:
        if event not in ((2,), (3,)):
            raise self._wrong(event, "(2,) or (3,)")

    def force(self, t: Any, q: Any) -> Any:
        r2 = added([c * c for c in components(q)])
        w = -self.mu * (sqrt(r2) / (r2 * r2))
        return w[..., None] * q

    def energy(self, q: Any, v: Any) -> Any:
        return 0.5 * (v * v).sum(-1) - self.mu / sqrt((q * q).sum(-1))

    def angular_momentum(self, q: Any, v: Any) -> Any:
        """(..., 3); in two dimensions (...), the component normal to the plane."""
        x, y, *z = components(q)
        vx, vy, *vz = components(v)
        normal = x * vy - y * vx
        return stack([y * vz[0] - z[0] * vy, z[0] * vx - x * vz[0], normal]) if z else normal

    def eccentricity(self, q: Any, v: Any) -> Any:
        """The Laplace-Runge-Lenz vector over mu: towards the pericentre, as long as the eccentricity."""
        r = sqrt((q * q).sum(-1))
        return (((v * v).sum(-1) - self.mu / r)[..., None] * q - (q * v).sum(-1)[..., None] * v) / self.mu

    def integrals(self) -> dict:
        return {"energy": self.energy, "angular momentum": self.angular_momentum, "eccentricity": self.eccentricity}
