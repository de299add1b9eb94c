"""One integration as both loops see it: method, functions, state format, grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError, UnsupportedError
from ..state import FixedPoint, StateFormat
from .methods.base import IDENTITY, Method, Micro
from .tableaus import Tableau

#: Of the default fixed-point states: bits below the unit. 2**7 units of range, 2.8e-17 of a unit of grid.
DEFAULT_FRAC_BITS = 55


@dataclass(frozen=True)
class Grid:
    """How the two slots are held: ``x = state * scale`` with ``scale`` a power of two per slot (a number, or one a component)."""

    format: StateFormat
    scales: tuple[Any, Any]

    def view(self, i: int, state: Tensor, dtype: torch.dtype) -> Tensor:
        """Float values of a state of slot ``i``."""
        return self._times(self.format.decode(state, dtype), self.scales[i])

    def encode(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(state, stats)`` of float values of slot ``i``."""
        _, state, stats = self.format.encode(self.into(i, x))
        return state.detach(), stats

    def into(self, i: int, x: Tensor) -> Tensor:
        """Float values in units of slot ``i``'s scale; exact, the scale being a power of two."""
        scale = self.scales[i]
        return x if _is_one(scale) else x / scale

    @staticmethod
    def _times(x: Tensor, scale: Any) -> Tensor:
        return x if _is_one(scale) else x * scale


def _is_one(scale: Any) -> bool:
    return isinstance(scale, float) and scale == 1.0


def make_grid(state: StateFormat | None, scale: Any, slots: tuple[Tensor, Tensor], shared: bool) -> Grid:
    """The grid of a run. Default: FixedPoint(64, 55) in units of the least power of two not below each slot's largest start value.

    Args:
        scale: a power of two, an array of them that broadcasts to the state, or a
            tuple of two of either, one a slot.
        shared: both slots hold the same quantity and must have one scale.

    Raises:
        ConfigError: a scale that is no power of two, two scales where one is needed, or a format that hides overflow.
    """
    if state is not None and not isinstance(state, StateFormat):
        raise ConfigError(f"state is {state!r}, expected revstep.FixedPoint(...) or revstep.Float(...)")
    if state is not None and state.exact and state.on_nonfinite != "raise":
        raise ConfigError("on_nonfinite='propagate' is for training with a loss scale; an integration raises: leave it out")
    if scale is None:
        scales = (1.0, 1.0) if state is not None else tuple(_unit(x) for x in slots)
        if shared:
            scales = (max(scales),) * 2
    else:
        if shared and isinstance(scale, tuple):
            raise ConfigError("scale is a pair, but this method holds the same quantity in both slots: give one scale")
        pair = scale if isinstance(scale, tuple) and len(scale) == 2 else (scale, scale)
        scales = tuple(_power_of_two(s, x) for s, x in zip(pair, slots))
    fmt = FixedPoint(64, DEFAULT_FRAC_BITS) if state is None else state
    if not fmt.exact:  # a power of two changes nothing in floating point, and the compiled loop reads float slots as they are
        scales = (1.0, 1.0)
    return Grid(fmt, scales)  # type: ignore[arg-type]


def _unit(x: Tensor) -> float:
    largest = float(x.detach().abs().max()) if x.numel() else 0.0
    return 2.0 ** math.ceil(math.log2(largest)) if 0.0 < largest < math.inf else 1.0


def _power_of_two(scale: Any, like: Tensor) -> Any:
    s = torch.as_tensor(scale, dtype=torch.float64)
    mantissa, _ = torch.frexp(s)
    if not bool(((mantissa == 0.5) & torch.isfinite(s)).all()):
        raise ConfigError(f"scale is {scale!r}, expected powers of two (2.0**k), so that scaling rounds nothing")
    if s.ndim == 0:
        return float(s)
    fits = s.ndim <= like.ndim and all(a in (1, b) for a, b in zip(reversed(s.shape), reversed(like.shape)))
    if not fits:
        raise ConfigError(f"scale has shape {tuple(s.shape)}, which does not broadcast to the state's {tuple(like.shape)}")
    return s.to(like.dtype).to(like.device)


@dataclass(frozen=True)
class Problem:
    """Everything of one run but its data.

    Attributes:
        functions: ``(f,)`` or ``(F, G)``, on tensors: ``f(t, x, *args)``.
        dtype: of the values the functions see.
        h, t0: as Python floats.
        saves: step numbers whose slots are kept, increasing, 0 and ``steps`` among them.
    """

    method: Method
    equation: str
    functions: Sequence[Callable[..., Tensor]]
    grid: Grid
    dtype: torch.dtype
    h: float
    t0: float
    steps: int
    saves: tuple[int, ...]

    def micros(self, n: int) -> tuple[Micro, ...]:
        return self.method.micros(n, self.equation)

    def time(self, n: int, tau: float = 0.0) -> float:
        """t0 + (n + tau) h: the same bits in both directions and both loops."""
        return self.t0 + (n + tau) * self.h

    def phi(self, micro: Micro, x: Tensor, t: Tensor, h: Any, args: Sequence[Any]) -> Tensor:
        """Phi(t, x) of a micro-step."""
        if micro.field == IDENTITY:
            return x
        f = self.functions[micro.field]
        version = None if x.is_inference() else x._version
        if micro.rk_sign:
            value = increment(self.method.tableau, f, t, h if micro.rk_sign > 0 else -h, x, args)
        else:
            value = f(t, x, *args)
        if version is not None and x._version != version:
            raise UnsupportedError("the field changed its argument in place; the step still needs it: let it work on a copy")
        if not isinstance(value, Tensor) or value.shape != x.shape:
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(f"the field returned {got}, expected a tensor of the state's shape {tuple(x.shape)}")
        return value


def increment(tableau: Tableau, f: Callable[..., Tensor], t: Tensor, h: Any, x: Tensor, args: Sequence[Any]) -> Tensor:
    """Psi_h(t, x) = h sum_i b_i k_i of an explicit Runge-Kutta step (summed in order, zero weights left out)."""
    ks: list[Tensor] = []
    for row, c in zip(tableau.a, tableau.c):
        stage = x
        moved = _weighted(row, ks)
        if moved is not None:
            stage = (x + _times(h, moved)).to(x.dtype)  # whatever the function returned
        k = f(t + c * h, stage, *args)
        ks.append(k.clone() if isinstance(k, Tensor) else k)  # it may return one buffer for all stages
    return _times(h, _weighted(tableau.b, ks))


def _times(h: Any, x: Tensor) -> Tensor:
    """h x in the dtype of ``x``, the same bits for a number and for a float64 scalar tensor."""
    if isinstance(h, Tensor) and x.ndim == 0:
        h = h.to(x.dtype)  # of two 0-d tensors the wider dtype wins
    return h * x


def _weighted(weights: Sequence[float], ks: Sequence[Tensor]) -> Tensor | None:
    total = None
    for w, k in zip(weights, ks):
        if w:
            total = w * k if total is None else total + w * k
    return total
