"""Time-reversible steps. One file a scheme; :mod:`revstep.schemes._base` finds them."""

from ._base import Claims, Coefficients, RowCoefficients, Scheme, available, make

__all__ = [
    "Claims",
    "Coefficients",
    "RowCoefficients",
    "Scheme",
    "available",
    "make",
    *sorted(cls.__name__ for cls in available().values()),
]
globals().update({cls.__name__: cls for cls in available().values()})


def __dir__() -> list[str]:
    return sorted(__all__)
