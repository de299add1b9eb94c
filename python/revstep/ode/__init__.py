"""Ordinary differential equations integrated by steps that can be undone, bit for bit in fixed point.

>>> from revstep import ode
>>> orbit = ode.integrate(ode.fields.Kepler(), (q0, p0), scheme="kahan_li6", h=1e-2, steps=1000)
>>> orbit.reverse().exact
True
"""

from . import compositions, fields, methods, tableaus
from .compositions import Composition, Splitting
from .energies import FromEnergies
from .equations import FirstOrder, SecondOrder, Separable
from .integrate import integrate
from .methods import ReversibleRK, available
from .odeint import odeint, odeint_adjoint
from .pointers import CompiledField
from .solution import Solution, Stats

__all__ = [
    "CompiledField", "Composition", "FirstOrder", "FromEnergies", "ReversibleRK", "SecondOrder", "Separable", "Solution", "Splitting", "Stats",
    "available", "compositions", "fields", "integrate", "methods", "odeint", "odeint_adjoint", "tableaus",
]  # fmt: skip
