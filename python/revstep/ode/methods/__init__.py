"""Integration methods as lists of micro-steps; one file a family, :mod:`._registry` finds them."""

from ._base import Method, Micro
from ._registry import available, default, resolve
from .reversible_rk import ReversibleRK
from .splitting import SplittingMethod
from .twostep import SymplecticEuler, TwoStep

__all__ = [
    "Method",
    "Micro",
    "ReversibleRK",
    "SplittingMethod",
    "SymplecticEuler",
    "TwoStep",
    "available",
    "default",
    "resolve",
]


def __dir__() -> list[str]:
    return sorted(__all__)
