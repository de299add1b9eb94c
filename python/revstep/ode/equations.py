"""What a field is: the equation its functions belong to. Built-in fields (:mod:`revstep.ode.fields`) have the same attributes."""

from __future__ import annotations

import abc
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ..errors import ConfigError

FIRST, SECOND, SEPARABLE = "first", "second", "separable"
#: Names of a parameter that is the time.
_TIME = ("t", "time")
#: Equation kind -> how it is written in tables and messages.
WRITTEN = {FIRST: "y' = f(t, y)", SECOND: "q'' = f(t, q)", SEPARABLE: "q' = dT/dp, p' = -dV/dq"}


class Field(abc.ABC):
    """Functions of one equation.

    Attributes:
        equation: ``"first"`` (y' = f(t, y)), ``"second"`` (q'' = f(t, q)) or ``"separable"`` (q' = F(t, p), p' = G(t, q)).
        energy: ``energy(y)`` or ``energy(q, v)`` / ``energy(q, p)``, or None where there is none.
        interval: ``(a, b)``, the times at which the functions can be asked; None: those of each run. Some methods
            look a step beyond the end of a run; times outside are not asked but extrapolated from inside.
        autonomous: the functions do not depend on t.
    """

    equation: str
    energy: Callable[..., Any] | None = None
    interval: tuple[float, float] | None = None
    autonomous: bool = False

    @abc.abstractmethod
    def functions(self) -> tuple[Callable, ...]:
        """``(f,)`` or ``(F, G)``, each called as ``f(t, x, *args)``."""


class _Given(Field):
    def __init__(self, functions: tuple[Callable, ...], energy: Callable[..., Any] | None, interval: Any):
        for f in functions:
            if not callable(f):
                raise ConfigError(f"{type(self).__name__} got {type(f).__name__}, expected a function f(t, x, *args)")
        self._functions, self.energy, self.interval = functions, energy, declared(interval)

    def functions(self) -> tuple[Callable, ...]:
        return self._functions


def declared(given: Any) -> tuple[float, float] | None:
    """An interval of times as a field declares it. Raises ConfigError where it is none."""
    if given is None:
        return None
    try:
        low, high = (float(x) for x in given)
    except (TypeError, ValueError):
        raise ConfigError(f"interval is {given!r}, expected a pair of times (a, b)") from None
    if math.isnan(low) or math.isnan(high) or not low < high:
        raise ConfigError(f"interval is {given!r}, expected a pair of times (a, b) with a < b")
    return low, high


class FirstOrder(_Given):
    """y' = f(t, y)."""

    equation = FIRST

    def __init__(
        self,
        f: Callable,
        energy: Callable[[Any], Any] | None = None,
        interval: tuple[float, float] | None = None,
    ):
        super().__init__((f,), energy, interval)


class SecondOrder(_Given):
    """q'' = f(t, q); states are (q, v) with v = q'."""

    equation = SECOND

    def __init__(
        self,
        f: Callable,
        energy: Callable[[Any, Any], Any] | None = None,
        interval: tuple[float, float] | None = None,
    ):
        super().__init__((f,), energy, interval)


class Separable(_Given):
    """q' = F(t, p) = dT/dp, p' = G(t, q) = -dV/dq; states are (q, p). Mind the sign: G is the force."""

    equation = SEPARABLE

    def __init__(
        self,
        F: Callable,
        G: Callable,
        energy: Callable[[Any, Any], Any] | None = None,
        interval: tuple[float, float] | None = None,
    ):
        super().__init__((F, G), energy, interval)


def as_field(field: Any, form: Any, args: Sequence[Any] = ()) -> Any:
    """``field`` as an object with ``equation`` and ``functions()``.

    A pair of functions is separable; one function is second-order when y0 is a pair (q0, v0), else first-order.

    Args:
        form: of y0, a :class:`revstep.ode.starts.Start`.
        args: what the functions get beside time and state.

    Raises:
        ConfigError: neither; or y0 does not have the form the equation needs; or a function of position and
            velocity where q'' = f(t, q) is meant.
    """
    pair = form.pair
    if hasattr(field, "equation") and callable(getattr(field, "functions", None)):
        found = field
    elif isinstance(field, (tuple, list, nn.ModuleList)) and len(field) == 2 and all(callable(f) for f in field):
        found = Separable(*field)
    elif callable(field):
        if pair and form.numbers:
            raise ConfigError(
                "y0 is a tuple of two numbers, which can be one array of y' = f(t, y) or (q0, v0) of q'' = f(t, q): "
                "give a list for the one, or SecondOrder(f) for the other"
            )
        found = (SecondOrder if pair else FirstOrder)(field, getattr(field, "energy", None))
    else:
        raise ConfigError(f"field is {type(field).__name__}, expected f(t, y), a pair (F, G), or one of revstep.ode.FirstOrder, SecondOrder, Separable")
    if found.equation not in WRITTEN:
        raise ConfigError(f"field has equation {found.equation!r}, expected one of {', '.join(WRITTEN)}")
    if pair != (found.equation != FIRST):
        names = {FIRST: "one array", SECOND: "a pair (q0, v0)", SEPARABLE: "a pair (q0, p0)"}
        got, hint = ("a pair", "") if pair else ("one array", ": write it as a tuple, for a list is one array")
        raise ConfigError(f"y0 is {got}, but {WRITTEN[found.equation]} needs {names[found.equation]}{hint}")
    if isinstance(found, _Given):
        for f in found.functions():
            _time_first(f)
    if found.equation == SECOND and isinstance(found, _Given):
        _no_velocity(found.functions()[0], len(args))
    return found


def _parameters(f: Callable) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # of a C function: nothing to see
        return []


def _time_first(f: Callable) -> None:
    """Raises ConfigError for f(y, t), the order of scipy.integrate.odeint, which would integrate another equation."""
    names = [p.name for p in _parameters(f)[:2]]
    if len(names) == 2 and names[1] in _TIME and names[0] not in _TIME:
        what = f"the field is f({', '.join(names)}), but fields are called f(t, x), the time first"
        raise ConfigError(f"{what}: exchange the two, as in lambda t, y: f(y, t)")


def _no_velocity(f: Callable, args: int) -> None:
    """Raises ConfigError for q'' = f(t, q, v), which is not of second order in the sense of these methods."""
    parameters = _parameters(f)
    required = [p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(required) == 3 + args and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        names = ", ".join(p.name for p in required)
        raise ConfigError(
            f"the field is f({names}), but q'' = f(t, q) knows no velocity: write an equation with damping or a "
            "magnetic force as y' = f(t, y) with y = (q, v) in one array and f returning (v, f(t, q, v))"
        )
