"""What a scheme is, a two-step recurrence with constant coefficients per layer and claims about it as data,
and the registry that finds the schemes by name.
"""

from __future__ import annotations

import abc
import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from .. import ops
from .._imports import discover
from ..errors import ConfigError
from ..state import FixedPoint, Float, StateFormat
from ..state._places import Primitive, describe_terms, overflow

# ------------------------------------------------------------------------------------------------------------
# What a scheme is: a two-step recurrence with constant coefficients per layer, and claims about it as data.

STARTS = ("repeat", "euler")
#: What a state can be held in.
_STATES = (torch.int32, torch.int64, torch.float32, torch.float64)


class Coefficients(NamedTuple):
    """``next = alpha prev + beta cur + gamma f(cur)``."""

    alpha: float
    beta: float
    gamma: float


class RowCoefficients(NamedTuple):
    """Two sets of coefficients, and which of them each sample takes: row b of the step uses ``second`` where
    ``choice[b]`` is 1.

    ``choice``: (rows,) uint8, rows being the leading dimension of the states.
    """

    choice: Tensor
    first: Coefficients
    second: Coefficients


@dataclass(frozen=True)
class Claims:
    """What a scheme promises; ``revstep verify`` measures it.

    Attributes:
        equation: the problem it integrates in depth-time.
        order: order of convergence on that problem, from start ``euler`` where there is one.
        symmetric: the inverse is the step with -h (time symmetry).
        symplectic: preserves the symplectic form of that problem.
        evaluations: evaluations of f a step.
        stability: where the linear test equation stays bounded, forwards and backwards.
        source: paper and equation.
        in_expectation: order and equation hold on average over the scheme's random coefficients, not for one
            draw.
        even: not symmetric, but its error has even powers of h alone up to the power of twice the order, as
            a symmetric method's has.
    """

    equation: str
    order: int
    symmetric: bool
    symplectic: bool
    evaluations: int
    stability: str
    source: str
    in_expectation: bool = False
    even: bool = False

    def __post_init__(self) -> None:
        if self.order < 1 or self.evaluations < 1 or not self.source or not self.stability:
            raise ConfigError(f"incomplete claims: {self}")


class Scheme(abc.ABC):
    """A reversible step. Subclasses are frozen dataclasses, one file each, and say only what differs.

    Class attributes:
        name: registry key.
        claims: see :class:`Claims`.
        halves: blocks a layer; 2 for schemes that alternate two streams (the recurrence then has two steps a
            layer).
        starts: the starts it knows (see :meth:`start_coefficients`).
        recommended_start: the one that keeps closest to a pretrained residual network.
        per_sample: coefficients are drawn for each sample; such a scheme is for training and no integrator of
            one trajectory.
    """

    name: ClassVar[str]
    claims: ClassVar[Claims]
    halves: ClassVar[int] = 1
    starts: ClassVar[tuple[str, ...]] = STARTS
    recommended_start: ClassVar[str] = "repeat"
    per_sample: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not isinstance(getattr(cls, "name", None), str) or not isinstance(
            getattr(cls, "claims", None), Claims
        ):
            raise ConfigError(f"scheme class {cls.__name__} must define `name` (str) and `claims` (Claims)")

    @abc.abstractmethod
    def coefficients(self, layer: int) -> Coefficients:
        """Coefficients of step ``layer`` (0-based; with ``halves == 2``, of half-step ``layer``)."""

    def euler_gamma(self) -> float:
        """gamma of the one-step start ``p[1] = p[0] + gamma f_0(p[0])``: the consistent first step of the
        scheme's own equation.
        """
        raise ConfigError(f"{self.name} has no start 'euler', expected one of {self.starts}")

    def check_depth(self, steps: int) -> None:  # noqa: B027  (most schemes take any depth)
        """Raises ConfigError when the scheme has no coefficients for this many steps."""

    def start_coefficients(self, layer: int, start: str) -> Coefficients:
        """Coefficients of a step with the start taken into account: ``euler`` replaces step 0 by a one-step
        method.
        """
        if start == "euler" and layer == 0:
            return Coefficients(1.0, 0.0, self.euler_gamma())
        return self.coefficients(layer)

    def draw(self, steps: int, start: str, rows: int, training: bool) -> list[Coefficients | RowCoefficients]:
        """Coefficients of every step of one forward pass on ``rows`` samples; ``training`` as in
        ``nn.Module``.

        The same for every pass unless the scheme says otherwise. A step with alpha = 0 cannot be undone: the
        stack then stores everything.
        """
        return [self.start_coefficients(k, start) for k in range(steps)]

    def amplification(self, steps: int, start: str = "repeat") -> float:
        """Factor by which the float inverse multiplies a rounding error over this depth: ``prod max(1,
        1/|alpha|)``.
        """
        return math.prod(max(1.0, 1 / abs(self.start_coefficients(k, start).alpha)) for k in range(steps))

    def step(
        self,
        prev: Tensor,
        cur: Tensor,
        f: Tensor | Callable[[Tensor], Tensor],
        layer: int = 0,
        state: StateFormat | None = None,
        return_carry: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One forward step on states.

        Args:
            prev: the older state, in ``state.dtype`` (``state.encode(x)[1]``), any shape.
            cur: the newer state, of the same shape and dtype.
            f: the increment ``f(cur)`` (float, the state's shape), or a function of the float view of
                ``cur``.
            layer: which coefficients.
            state: format; default ``FixedPoint()`` for integer tensors, else the tensors' own float dtype.
            return_carry: also return the packed carry bits, which ``inverse`` needs when ``|alpha| < 1`` in
                fixed point.

        Returns:
            ``next``, in the state's dtype, or ``(next, carry)``. Differentiable in float states.
        """
        fmt = _format_of(prev, state)
        c = self.coefficients(layer)
        f = _increment(f, cur, fmt)
        _, nxt, carry, stats = ops.step(prev, cur, f, *c, fmt.frac_bits, None)
        check_range(stats, fmt, Call(f"{self.name}.step", layer, c, ("prev", "cur", "f"), (prev, cur, f)))
        return (nxt, carry) if return_carry else nxt

    def inverse(
        self,
        nxt: Tensor,
        cur: Tensor,
        f: Tensor | Callable[[Tensor], Tensor],
        layer: int = 0,
        state: StateFormat | None = None,
        carry: Tensor | None = None,
    ) -> Tensor:
        """``prev`` from ``next`` and ``cur``: the same bits in fixed point, the same up to rounding in float
        states.

        Raises:
            ConfigError: ``|alpha| < 1`` in fixed point and no ``carry`` given.
        """
        fmt = _format_of(nxt, state)
        c = self.coefficients(layer)
        if carry is None:
            if fmt.exact and ops.carry_bits(c.alpha):
                raise ConfigError(
                    f"{self.name} layer {layer} has |alpha| = {abs(c.alpha)} < 1: pass carry=, from step(...,"
                    " return_carry=True)"
                )
            carry = nxt.new_empty((0, 0), dtype=torch.int32)
        f = _increment(f, cur, fmt)
        _, prev, stats = ops.inverse(nxt, cur, f, carry, *c, fmt.frac_bits, None)
        check_range(stats, fmt, Call(f"{self.name}.inverse", layer, c, ("nxt", "cur", "f"), (nxt, cur, f)))
        return prev


def _format_of(x: Tensor, state: StateFormat | None) -> StateFormat:
    if state is None:
        if x.dtype not in _STATES:
            how = "encode them with FixedPoint().encode(x)[1]"
            raise ConfigError(f"states are {x.dtype}, expected one of {_STATES}: {how}")
        if x.dtype.is_floating_point:
            return Float(x.dtype)
        state = FixedPoint(x.element_size() * 8)
    if x.dtype != state.dtype:
        how = "encode them with state.encode(x)[1]"
        raise ConfigError(f"states are {x.dtype}, but {state} holds {state.dtype}: {how}")
    return state


def _increment(f: Tensor | Callable[[Tensor], Tensor], cur: Tensor, fmt: StateFormat) -> Tensor:
    if isinstance(f, Tensor):
        return f
    return f(fmt.decode(cur, torch.float64 if cur.dtype in (torch.int64, torch.float64) else torch.float32))


class Call(NamedTuple):
    """One call of a primitive, for the message of a result out of range.

    Attributes:
        name: of scheme and method.
        layer: the layer that chose the coefficients.
        c: the coefficients.
        names: of the caller's three arguments; the first is "nxt" where a step is undone.
        given: their values: two states and the increment.
    """

    name: str
    layer: int
    c: Coefficients
    names: tuple[str, ...]
    given: tuple[Tensor, ...]


def check_range(stats: Tensor, fmt: StateFormat, call: Call) -> None:
    """Raise StateOverflowError when a primitive's kernel saw values out of range (formats that raise)."""
    if fmt.on_nonfinite != "raise":
        return
    if torch.compiler.is_dynamo_compiling():
        from ..ops import _untraced

        _untraced.call(_check, stats, fmt, *call)
    else:
        _check(stats, fmt, *call)


def _check(stats: Tensor, fmt: StateFormat, *call: Any) -> None:
    seen = ops.read_stats(stats)[0]
    made = Call(*call)
    if seen.bad:
        tensors = dict(zip(made.names, made.given, strict=True))
        terms, largest = describe_terms(tensors, made.c, fmt, seen.first_bad)
        name = f"{made.name}, layer {made.layer}"
        inverse = made.names[0] == "nxt"
        place = Primitive(name, made.layer, terms, largest, inverse)
        raise overflow(seen, fmt, place, made.given[0].shape)


def finite(name: str, value: float, nonzero: bool = True) -> float:
    """A coefficient as a float. Raises ConfigError naming it when it is not a finite (non-zero) number."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or (nonzero and value == 0)
    ):
        raise ConfigError(f"{name} = {value!r}: expected a finite{' non-zero' if nonzero else ''} number")
    return float(value)


def reversible(name: str, value: float) -> float:
    """A weight of ``prev``, snapped to the 2**-24 grid. Raises ConfigError when the step could not be undone
    with it.
    """
    snapped = ops.snap(finite(name, value))
    try:
        ops.carry_bits(snapped)
    except ConfigError as error:  # which speaks of alpha; the caller gave it another name
        raise ConfigError(f"{name} = {value!r} is the weight alpha of a step: {error}") from None
    return snapped


# ------------------------------------------------------------------------------------------------------------
# Discovery: every module of this package that defines a Scheme with a name registers it. There is no list to
# keep.


@functools.cache
def _discover() -> dict[str, type[Scheme]]:
    return discover(__name__.rpartition(".")[0], Scheme)


def available() -> dict[str, type[Scheme]]:
    """All schemes by name."""
    return dict(_discover())


def make(name: str, **options: Any) -> Scheme:
    """A scheme by name.

    Raises:
        ConfigError: unknown name or option; the message lists the known ones.
    """
    schemes = _discover()
    if name not in schemes:
        raise ConfigError(f"unknown scheme {name!r}, expected one of {', '.join(schemes)}")
    known = inspect.signature(schemes[name]).parameters
    for option in options:
        if option not in known:
            raise ConfigError(
                f"scheme {name!r} has no option {option!r}, expected some of {', '.join(known) or 'none'}"
            )
    return schemes[name](**options)
