"""What a field is: the equation its functions belong to. Built-in fields (:mod:`revstep.ode.fields`) have the same attributes."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

from torch import nn

from ..errors import ConfigError

FIRST, SECOND, SEPARABLE = "first", "second", "separable"
#: Equation kind -> how it is written in tables and messages.
WRITTEN = {FIRST: "y' = f(t, y)", SECOND: "q'' = f(t, q)", SEPARABLE: "q' = dT/dp, p' = -dV/dq"}


class Field(abc.ABC):
    """Functions of one equation.

    Attributes:
        equation: ``"first"`` (y' = f(t, y)), ``"second"`` (q'' = f(t, q)) or ``"separable"`` (q' = F(t, p), p' = G(t, q)).
        energy: ``energy(y)`` or ``energy(q, v)`` / ``energy(q, p)``, or None where there is none.
    """

    equation: str
    energy: Callable[..., Any] | None = None

    @abc.abstractmethod
    def functions(self) -> tuple[Callable, ...]:
        """``(f,)`` or ``(F, G)``, each called as ``f(t, x, *args)``."""


class _Given(Field):
    def __init__(self, functions: tuple[Callable, ...], energy: Callable[..., Any] | None):
        for f in functions:
            if not callable(f):
                raise ConfigError(f"{type(self).__name__} got {type(f).__name__}, expected a function f(t, x, *args)")
        self._functions, self.energy = functions, energy

    def functions(self) -> tuple[Callable, ...]:
        return self._functions


class FirstOrder(_Given):
    """y' = f(t, y)."""

    equation = FIRST

    def __init__(self, f: Callable, energy: Callable[[Any], Any] | None = None):
        super().__init__((f,), energy)


class SecondOrder(_Given):
    """q'' = f(t, q); states are (q, v) with v = q'."""

    equation = SECOND

    def __init__(self, f: Callable, energy: Callable[[Any, Any], Any] | None = None):
        super().__init__((f,), energy)


class Separable(_Given):
    """q' = F(t, p) = dT/dp, p' = G(t, q) = -dV/dq; states are (q, p). Mind the sign: G is the force."""

    equation = SEPARABLE

    def __init__(self, F: Callable, G: Callable, energy: Callable[[Any, Any], Any] | None = None):
        super().__init__((F, G), energy)


def as_field(field: Any, y0: Any) -> Any:
    """``field`` as an object with ``equation`` and ``functions()``.

    A pair of functions is separable; one function is second-order when ``y0`` is a pair (q0, v0), else first-order.

    Raises:
        ConfigError: neither; or ``y0`` does not have the form the equation needs.
    """
    pair = isinstance(y0, (tuple, list))
    if hasattr(field, "equation") and callable(getattr(field, "functions", None)):
        found = field
    elif isinstance(field, (tuple, list, nn.ModuleList)) and len(field) == 2 and all(callable(f) for f in field):
        found = Separable(*field)
    elif callable(field):
        found = SecondOrder(field, getattr(field, "energy", None)) if pair else FirstOrder(field, getattr(field, "energy", None))
    else:
        raise ConfigError(f"field is {type(field).__name__}, expected f(t, y), a pair (F, G), or one of revstep.ode.FirstOrder, SecondOrder, Separable")
    if found.equation not in WRITTEN:
        raise ConfigError(f"field has equation {found.equation!r}, expected one of {', '.join(WRITTEN)}")
    if pair != (found.equation != FIRST):
        names = {FIRST: "one array", SECOND: "a pair (q0, v0)", SEPARABLE: "a pair (q0, p0)"}
        raise ConfigError(f"y0 is {'a pair' if pair else 'one array'}, but {WRITTEN[found.equation]} needs {names[found.equation]}")
    return found
