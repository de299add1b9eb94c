"""Ordinary differential equations integrated by steps that can be undone, bit for bit in fixed point.

>>> from revstep import ode
>>> orbit = ode.integrate(ode.fields.Kepler(), (q0, p0), scheme="kahan_li6", h=1e-2, steps=1000)
>>> orbit.reverse().exact
True
"""

from . import compositions, fields, methods, tableaus
from ._equations import FirstOrder, FromEnergies, SecondOrder, Separable
from ._functions import CompiledField
from ._integrate import integrate
from ._odeint import odeint, odeint_adjoint
from ._solution import Solution, Stats
from .compositions import Composition, Splitting
from .methods import ReversibleRK, available

__all__ = [
    "CompiledField",
    "Composition",
    "FirstOrder",
    "FromEnergies",
    "ReversibleRK",
    "SecondOrder",
    "Separable",
    "Solution",
    "Splitting",
    "Stats",
    "available",
    "compositions",
    "fields",
    "integrate",
    "methods",
    "odeint",
    "odeint_adjoint",
    "tableaus",
]
