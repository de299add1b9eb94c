"""Time-reversible steps. One file a scheme; :mod:`revstep.schemes._base` finds them."""

from typing import TYPE_CHECKING

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


if TYPE_CHECKING:  # what a type checker sees of what is found; .ci/typed.py compares the names
    from .bdia import BDIA as BDIA
    from .blend import Blend as Blend
    from .hamiltonian import Hamiltonian as Hamiltonian
    from .leapfrog import Leapfrog as Leapfrog
    from .midpoint import Midpoint as Midpoint
    from .midpoint_blend import MidpointBlend as MidpointBlend


def __dir__() -> list[str]:
    return sorted(__all__)
