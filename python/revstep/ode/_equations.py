"""What a field is: the equation its functions belong to. Built-in fields (:mod:`revstep.ode.fields`) have the
same attributes.
"""

from __future__ import annotations

import abc
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ._graph import walk

FIRST, SECOND, SEPARABLE = "first", "second", "separable"
#: Names of a parameter that is the time.
_TIME = ("t", "time")
#: Equation kind -> how it is written in tables and messages.
WRITTEN = {FIRST: "y' = f(t, y)", SECOND: "q'' = f(t, q)", SEPARABLE: "q' = dT/dp, p' = -dV/dq"}


class Field(abc.ABC):
    """Functions of one equation.

    Attributes:
        equation: ``"first"`` (y' = f(t, y)), ``"second"`` (q'' = f(t, q)) or ``"separable"`` (q' = F(t, p),
            p' = G(t, q)).
        energy: ``energy(y)`` or ``energy(q, v)`` / ``energy(q, p)``, or None where there is none.
        interval: ``(a, b)``, the times at which the functions can be asked; None: those of each run. Some
            methods look a step beyond the end of a run; times outside are not asked but extrapolated from
            inside.
        autonomous: the functions do not depend on t.
    """

    equation: str
    energy: Callable[..., Any] | None = None
    interval: tuple[float, float] | None = None
    autonomous: bool = False

    @abc.abstractmethod
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """``(f,)`` or ``(F, G)``, each called as ``f(t, x, *args)``."""


class _Given(Field):
    def __init__(
        self, functions: tuple[Callable[..., Any], ...], energy: Callable[..., Any] | None, interval: Any
    ):
        for f in functions:
            if not callable(f):
                raise ConfigError(
                    f"{type(self).__name__} got {type(f).__name__}, expected a function f(t, x, *args)"
                )
        self._functions = functions
        self.energy = energy
        self.interval = declared(interval)

    def functions(self) -> tuple[Callable[..., Any], ...]:
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
        f: Callable[..., Any],
        energy: Callable[[Any], Any] | None = None,
        interval: tuple[float, float] | None = None,
    ):
        super().__init__((f,), energy, interval)


class SecondOrder(_Given):
    """q'' = f(t, q); states are (q, v) with v = q'."""

    equation = SECOND

    def __init__(
        self,
        f: Callable[..., Any],
        energy: Callable[[Any, Any], Any] | None = None,
        interval: tuple[float, float] | None = None,
    ):
        super().__init__((f,), energy, interval)


class Separable(_Given):
    """q' = F(t, p) = dT/dp, p' = G(t, q) = -dV/dq; states are (q, p). Mind the sign: G is the force."""

    equation = SEPARABLE

    def __init__(
        self,
        F: Callable[..., Any],
        G: Callable[..., Any],
        energy: Callable[[Any, Any], Any] | None = None,
        interval: tuple[float, float] | None = None,
    ):
        super().__init__((F, G), energy, interval)


def as_field(field: Any, form: Any, args: Sequence[Any] = ()) -> Any:
    """``field`` as an object with ``equation`` and ``functions()``.

    A pair of functions is separable; one function is second-order when y0 is a pair (q0, v0), else
    first-order.

    Args:
        form: of y0, a :class:`revstep.ode._starts.Start`.
        args: what the functions get beside time and state.

    Raises:
        ConfigError: neither; or y0 does not have the form the equation needs; or a function of position and
            velocity where q'' = f(t, q) is meant.
    """
    pair = form.pair
    if hasattr(field, "equation") and callable(getattr(field, "functions", None)):
        found = field
    elif (
        isinstance(field, (tuple, list, nn.ModuleList))
        and len(field) == 2
        and all(callable(f) for f in field)
    ):
        found = Separable(*field)
    elif callable(field):
        if pair and form.numbers:
            raise ConfigError(
                "y0 is a tuple of two numbers, which can be one array of y' = f(t, y) or (q0, v0) of q'' ="
                " f(t, q): give a list for the one, or SecondOrder(f) for the other"
            )
        found = (SecondOrder if pair else FirstOrder)(field, getattr(field, "energy", None))
    else:
        raise ConfigError(
            f"field is {type(field).__name__}, expected f(t, y), a pair (F, G), or one of"
            " revstep.ode.FirstOrder, SecondOrder, Separable"
        )
    if found.equation not in WRITTEN:
        raise ConfigError(f"field has equation {found.equation!r}, expected one of {', '.join(WRITTEN)}")
    if pair != (found.equation != FIRST):
        names = {FIRST: "one array", SECOND: "a pair (q0, v0)", SEPARABLE: "a pair (q0, p0)"}
        got, hint = (
            ("a pair", "") if pair else ("one array", ": write it as a tuple, for a list is one array")
        )
        raise ConfigError(f"y0 is {got}, but {WRITTEN[found.equation]} needs {names[found.equation]}{hint}")
    if isinstance(found, _Given):
        for f in found.functions():
            _time_first(f)
    if found.equation == SECOND and isinstance(found, _Given):
        _no_velocity(found.functions()[0], len(args))
    return found


def _parameters(f: Callable) -> list[inspect.Parameter]:
    if isinstance(f, nn.Module):  # whose call takes anything
        f = getattr(f, "_orig_mod", f).forward
    try:
        return list(inspect.signature(f).parameters.values())
    except (TypeError, ValueError):  # of a C function: nothing to see
        return []


def _time_first(f: Callable) -> None:
    """Raises ConfigError for f(y, t), the order of scipy.integrate.odeint, which would integrate another
    equation.
    """
    names = [p.name for p in _parameters(f)[:2]]
    if len(names) == 2 and names[1] in _TIME and names[0] not in _TIME:
        what = f"the field is f({', '.join(names)}), but fields are called f(t, x), the time first"
        raise ConfigError(f"{what}: exchange the two, as in lambda t, y: f(y, t)")


def _no_velocity(f: Callable, args: int) -> None:
    """Raises ConfigError for q'' = f(t, q, v), which is not of second order in the sense of these methods."""
    parameters = _parameters(f)
    required = [
        p
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) == 3 + args and not any(p.kind == p.VAR_POSITIONAL for p in parameters):
        names = ", ".join(p.name for p in required)
        raise ConfigError(
            f"the field is f({names}), but q'' = f(t, q) knows no velocity: write an equation with damping or"
            " a magnetic force as y' = f(t, y) with y = (q, v) in one array and f returning (v, f(t, q, v))"
        )


# ---- A separable field from its two energies, differentiated by torch ----

#: How far from a point an energy is asked once more, in units of 1 + |x|, to see whether it is constant.
_ASIDE = 2.0**-10


class FromEnergies(Field):
    """A separable Hamiltonian H = T(p) + V(q) from its two energies; the derivatives are torch's.

    The energies are functions of torch tensors, also where the start is NumPy. An energy that does not depend
    on its argument, or returns a number, has the derivative zero.

    Args:
        T: the kinetic energy, a function of a torch tensor that sums over nothing but one system: any shape
            in, a tensor out whose sum is differentiated, so that batches of independent systems work.
        V: the potential energy, likewise.

    Raises:
        ConfigError: T or V is no function. During a run: an energy that depends on its argument in a way that
            torch does not see (through NumPy, ``item()`` or ``detach()``), or is not a real number or tensor.
    """

    equation = SEPARABLE
    #: The functions take and return tensors, whatever the start is.
    on_tensors = True

    def __init__(self, T: Callable[[Tensor], Tensor], V: Callable[[Tensor], Tensor]):
        for name, f in (("T", T), ("V", V)):
            if not callable(f):
                raise ConfigError(f"{name} is {type(f).__name__}, expected a function of a tensor")
        self.T, self.V = T, V

    def functions(self) -> tuple[Callable[..., Any], ...]:
        return (lambda t, p: _derivative("T", self.T, p)), (lambda t, q: -_derivative("V", self.V, q))

    def energy(self, q: Any, p: Any) -> Any:
        """T(p) + V(q), of tensors or of NumPy arrays."""
        if isinstance(q, Tensor):
            total = self.T(p) + self.V(q)
            return total if isinstance(total, Tensor) else torch.tensor(total, dtype=q.dtype, device=q.device)
        with torch.no_grad():
            total = self.T(torch.from_numpy(np.array(p))) + self.V(torch.from_numpy(np.array(q)))
        return np.asarray(total)


def _derivative(name: str, energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """dE/dx, with a graph where a gradient is asked for: of ``x``, or of something else that acts on E."""
    outer = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        leaf = x if outer and x.requires_grad else _fresh(x)
        total = _total(name, energy, leaf)
        found = None
        if isinstance(total, Tensor) and total.requires_grad:
            graph = outer and (x.requires_grad or any(other is not leaf for other in walk(total)))
            found = torch.autograd.grad(total, leaf, create_graph=graph, allow_unused=True)[0]
        if found is None:
            _check_constant(name, energy, leaf, total)
    return torch.zeros_like(x, requires_grad=False) if found is None else found


def _fresh(x: Tensor) -> Tensor:
    return (x.clone() if x.is_inference() else x.detach()).requires_grad_()


def _total(name: str, energy: Callable[[Tensor], Tensor], x: Tensor) -> Any:
    """The sum of an energy. Raises ConfigError where it is nothing to differentiate."""
    try:
        value = energy(x)
    except RuntimeError as error:
        if "numpy()" not in str(error):
            raise
        raise ConfigError(
            f"{name} handed its argument to NumPy, expected operations of torch (torch.cos, not np.cos): "
            "energies are differentiated by torch, also where the start is NumPy"
        ) from error
    numbers = (int, float, np.floating, np.integer)
    if not isinstance(value, (Tensor, *numbers)) or (isinstance(value, Tensor) and value.is_complex()):
        what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ConfigError(f"{name} returned {what}, expected a tensor or a number, the energy")
    return value.sum() if isinstance(value, Tensor) else value


def _check_constant(name: str, energy: Callable[[Tensor], Tensor], x: Tensor, total: Any) -> None:
    """An energy on which torch sees no influence of its argument has the same value beside it.

    (Or it has a branch there, on the other side of which torch does see one.)
    """
    aside = (x.detach() + _ASIDE * (1 + x.detach().abs())).requires_grad_()
    beside = _total(name, energy, aside)
    if isinstance(beside, Tensor) and any(leaf is aside for leaf in walk(beside)):
        return
    here, there = (float(e.detach()) if isinstance(e, Tensor) else float(e) for e in (total, beside))
    if here != there:
        raise ConfigError(
            f"{name} changes with its argument, from {here!r} to {there!r} close by, but torch sees no "
            "influence of it: let it stay a tensor in the energy, without item(), float(), detach() or NumPy"
        )
