"""Built-in fields of bodies under gravity: one body in the field of a fixed centre, and many that attract
each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...errors import ConfigError
from .._functions import KEPLER, N_BODY
from ._base import BuiltIn, added, components, number, sqrt, stack

# ---- One body in the field of a fixed centre ----


@dataclass(frozen=True)
class Kepler(BuiltIn):
    """q'' = -mu q / |q|**3, q in 2 or 3 dimensions (the last axis); H = |v|**2 / 2 - mu / |q|. :class:`NBody`
    moves both bodies.

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

    def integrals(self) -> dict[str, Any]:
        return {
            "energy": self.energy,
            "angular momentum": self.angular_momentum,
            "eccentricity": self.eccentricity,
        }


# ---- Gravitating bodies ----


@dataclass(frozen=True)
class NBody(BuiltIn):
    """q[i]'' = sum over j of G m[j] (q[j] - q[i]) / (|q[j] - q[i]|**2 + softening**2)**(3/2), states (...,
    bodies, space).

    The second part of the state is the velocity (not the momentum m v), whatever the equation is called: the
    two differ by constant factors. The sum over j is taken in ascending order. A test particle pulls nothing
    and may be where another is; at the place of a body with mass the force on it has no value without
    softening, and the run ends there.

    Args:
        masses: one a body, not negative; 0 is a test particle.
        G: gravitational constant, in length**3 / (mass time**2).
        softening: Plummer length, in the units of q; 0 for none.
        space: dimensions of space, 1, 2 or 3.
        equation: ``"second"`` or ``"separable"``.
    """

    masses: Sequence[float] = (1.0, 1e-3)
    G: float = 1.0
    softening: float = 0.0
    space: int = 3
    equation: str = "second"

    kinds: ClassVar[tuple[str, ...]] = ("second", "separable")
    event_dims: ClassVar[int] = 2
    number: ClassVar[int] = N_BODY

    def __post_init__(self) -> None:
        masses = tuple(number("NBody mass", m) for m in np.asarray(self.masses, dtype=np.float64).tolist())
        if not masses or min(masses) < 0:
            raise ConfigError(f"NBody masses are {masses}, expected one or more, none negative")
        object.__setattr__(self, "masses", masses)
        object.__setattr__(self, "G", number("NBody G", self.G))
        object.__setattr__(self, "softening", number("NBody softening", self.softening))
        if self.softening < 0 or isinstance(self.space, bool) or self.space not in (1, 2, 3):
            raise ConfigError(
                f"NBody softening is {self.softening} and space is {self.space!r}, expected softening >= 0"
                " and 1, 2 or 3 dimensions"
            )
        self._check_equation()

    def params(self) -> tuple[float, ...]:
        return (float(self.space), self.softening * self.softening, *(self.G * m for m in self.masses))

    def check_event(self, event: tuple[int, ...]) -> None:
        if event != (len(self.masses), self.space):
            raise self._wrong(event, f"({len(self.masses)}, {self.space}): bodies, dimensions")

    def force(self, t: Any, q: Any) -> Any:
        bodies = len(self.masses)
        where = torch.where if isinstance(q, torch.Tensor) else np.where
        eye = (
            torch.eye(bodies, dtype=torch.bool, device=q.device)
            if isinstance(q, torch.Tensor)
            else np.eye(bodies, dtype=bool)
        )
        # x + -0.0 is x.
        total = torch.full_like(q, -0.0) if isinstance(q, torch.Tensor) else np.full_like(q, -0.0)
        for j, mass in enumerate(self.masses):
            if self.G * mass == 0.0:
                continue  # pulls nothing, not even a body at its own place
            d = q[..., j : j + 1, :] - q
            r2 = added([self.softening * self.softening, *(c * c for c in components(d))])
            r2 = where(eye[j], 1.0, r2)  # a body does not act on itself
            w = (self.G * mass) * (sqrt(r2) / (r2 * r2))
            total = where(eye[j][:, None], total, total + w[..., None] * d)
        return total

    def energy(self, q: Any, v: Any) -> Any:
        """Of all bodies: kinetic, and the softened potential."""
        kinetic = added([0.5 * m * (v[..., i, :] * v[..., i, :]).sum(-1) for i, m in enumerate(self.masses)])
        for i, a in enumerate(self.masses):
            for j, b in enumerate(self.masses[:i]):
                if self.G * a * b == 0.0:
                    continue
                d = q[..., i, :] - q[..., j, :]
                kinetic = kinetic - self.G * a * b / sqrt((d * d).sum(-1) + self.softening * self.softening)
        return kinetic

    def momentum(self, q: Any, v: Any) -> Any:
        return added([m * v[..., i, :] for i, m in enumerate(self.masses)])

    def angular_momentum(self, q: Any, v: Any) -> Any:
        """Sum of m (q x v): the components (i, j), i < j, of the antisymmetric tensor (..., space, space)."""
        return added(
            [
                m * (q[..., i, :, None] * v[..., i, None, :] - v[..., i, :, None] * q[..., i, None, :])
                for i, m in enumerate(self.masses)
            ]
        )

    def integrals(self) -> dict[str, Any]:
        return {"energy": self.energy, "momentum": self.momentum, "angular momentum": self.angular_momentum}
