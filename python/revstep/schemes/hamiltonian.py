from __future__ import annotations

from dataclasses import dataclass

from ._base import Claims, Coefficients, Scheme, finite, reversible


@dataclass(frozen=True)
class Hamiltonian(Scheme):
    """Symplectic Euler on two streams q and p; each layer is a pair of blocks (F, G).

    A layer computes ``q' = a q + h F_j(p)`` and then ``p' = b p + h G_j(q')``. If the states are numbered q0,
    p0, q1, p1, ..., both halves have the form ``next = alpha prev + h f(cur)``: half-step 2j uses F_j and a,
    half-step 2j+1 uses G_j and b. The inverse undoes G first, then F. With a = b = h = 1 this is the coupling
    of RevNet. Carry bits are needed only where \\|a\\| or \\|b\\| < 1.

    Both streams start as the input (start ``repeat``). A one-step method needs no ``euler`` start and has
    none.

    Source: Gal et al., arXiv 2512.02056, sections 2.8, 2.9; Gomez et al., RevNet, NeurIPS 2017.
    """

    h: float = 1.0
    a: float = 1.0
    b: float = 1.0

    name = "hamiltonian"
    halves = 2
    starts = ("repeat",)
    claims = Claims(
        equation="q' = F(p), p' = G(q)", order=1, symmetric=False, symplectic=True, evaluations=2,
        stability="h**2 |lambda_F lambda_G| <= 4 for a = b = 1, both ways",
        source="Gal et al. 2512.02056, 2.8-2.9",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "h", finite("Hamiltonian h", self.h))
        object.__setattr__(self, "a", reversible("Hamiltonian a", self.a))
        object.__setattr__(self, "b", reversible("Hamiltonian b", self.b))

    def coefficients(self, layer: int) -> Coefficients:
        return Coefficients(self.b if layer % 2 else self.a, 0.0, self.h)
