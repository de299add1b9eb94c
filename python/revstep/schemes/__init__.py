"""Time-reversible steps. One file a scheme; :mod:`revstep.schemes.registry` finds them."""

from .base import Claims, Coefficients, RowCoefficients, Scheme
from .registry import available, make

__all__ = ["Claims", "Coefficients", "RowCoefficients", "Scheme", "available", "make", *sorted(cls.__name__ for cls in available().values())]
globals().update({cls.__name__: cls for cls in available().values()})
