"""Strang splitting itself, A/2 B A/2: the Stormer-Verlet scheme of second-order and of separable equations."""

from .base import Composition

VERLET = Composition("verlet", 2, (1.0,), "Strang, SIAM J. Numer. Anal. 5 (1968); Verlet, Phys. Rev. 159 (1967)")
