"""One integration as both loops see it: method, functions, state format, grid."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import CallbackError, ConfigError, UnsupportedError
from ..state import StateFormat
from ._equations import FIRST, SECOND
from .methods._base import IDENTITY, Method, Micro
from .tableaus import Tableau

#: An extrapolation whose weights add up to more than this, in magnitude, costs more digits than it is worth.
MOST_WEIGHT = 128.0
#: Times this close to the end of the interval, in steps, are inside of it.
EDGE = 1e-9


@dataclass(frozen=True)
class Grid:
    """How the two slots are held: ``x = state * scale`` with ``scale`` a power of two per slot (a number, or
    one an element).

    Args:
        format: of the states.
        scales: of the two slots.
        chosen: the scales were not given but found from the start, so that another format keeps them.
        pairs: the last axis of the state holds real and imaginary parts.
    """

    format: StateFormat
    scales: tuple[Any, Any]
    chosen: bool = False
    pairs: bool = False

    def view(self, i: int, state: Tensor, dtype: torch.dtype) -> Tensor:
        """Float values of a state of slot ``i``."""
        return self.scaled(i, self.format.decode(state, dtype))

    def scaled(self, i: int, x: Tensor) -> Tensor:
        """Float values of slot ``i`` that are in units of its scale, in those of the equation."""
        scale = self.scales[i]
        return x if _is_one(scale) else x * scale

    def encode(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(state, stats)`` of float values of slot ``i``."""
        _, state, stats = self.format.encode(self.into(i, x))
        return state.detach(), stats

    def into(self, i: int, x: Tensor) -> Tensor:
        """Float values in units of slot ``i``'s scale; exact, the scale being a power of two."""
        scale = self.scales[i]
        return x if _is_one(scale) else x / scale

    def unit(self, i: int, like: Tensor) -> Tensor:
        """The scale of each element of slot ``i``, float64."""
        scale = torch.as_tensor(self.scales[i], dtype=torch.float64, device=like.device)
        return scale.expand(like.shape)


def scalar_on(device: torch.device, x: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """A number as a 0-d tensor, which the device writes by itself: ``torch.tensor`` would write it here and
    wait until it is there.
    """
    return torch.scalar_tensor(x, dtype=dtype, device=device)


def _is_one(scale: Any) -> bool:
    return isinstance(scale, float) and scale == 1.0


@dataclass(frozen=True)
class Problem:
    """Everything of one run but its data.

    Args:
        functions: ``(f,)`` or ``(F, G)``, on tensors: ``f(t, x, *args)``.
        dtype: of the values the functions see.
        h, t0: as Python floats; t0 is the time of step 0.
        steps: to take, from step ``first`` on.
        saves: step numbers whose slots are saved, increasing, ``first`` and ``last`` among them.
        first: the step at which the run starts; not 0 where it goes on from the final slots of another.
        interval: times outside of it are never handed to the field; None: those of the run itself.
        autonomous: the field does not depend on t, so that no time is outside.
    """

    method: Method
    equation: str
    functions: Sequence[Callable[..., Tensor]]
    grid: Grid | None
    dtype: torch.dtype
    h: float
    t0: float
    steps: int
    saves: tuple[int, ...]
    first: int = 0
    interval: tuple[float, float] | None = None
    autonomous: bool = False

    def on(self, grid: Grid) -> Problem:
        """The same with the grid that was chosen for it."""
        return replace(self, grid=grid)

    @property
    def last(self) -> int:
        """The step at which the run ends."""
        return self.first + self.steps

    @functools.cached_property
    def limits(self) -> tuple[float, float]:
        """Least and largest time the field is asked at; infinite where a run is too short to stay inside of
        it.
        """
        low, high = self.regular
        edges = (*range(self.first, low), *range(max(low, high), self.last))
        looks_out = any(self._outside(n, m) for n in edges for m in self.micros(n))
        return (-math.inf, math.inf) if looks_out else self.bounds

    @functools.cached_property
    def bounds(self) -> tuple[float, float]:
        """Ends of the interval of times that is meant for the field."""
        if self.interval is not None:
            return self.interval
        ends = (self.t0 + self.first * self.h, self.t0 + self.last * self.h)
        return min(ends), max(ends)

    @functools.cached_property
    def reach(self) -> tuple[float, float]:
        """The same in steps: least and largest n + tau."""
        if self.interval is None:
            return float(self.first), float(self.last)
        ends = ((self.interval[0] - self.t0) / self.h, (self.interval[1] - self.t0) / self.h)
        return min(ends), max(ends)

    @functools.cached_property
    def regular(self) -> tuple[int, int]:
        """``(a, b)``: steps a <= n < b take the method's own micro-steps, as none of them looks outside of
        the interval.
        """
        if self.autonomous or not self.steps:
            return self.first, self.last
        low, high = self.method.reach(self.equation)
        a, b = self.first, self.last
        if math.isfinite(self.reach[0]):
            a = max(a, math.ceil(self.reach[0] - low - EDGE))
        if math.isfinite(self.reach[1]):
            b = min(b, math.floor(self.reach[1] - high + EDGE) + 1)
        return (a, b) if a < b else (self.last, self.last)

    @functools.cached_property
    def slot_names(self) -> tuple[str, str]:
        """What the two slots hold, in the letters of the guide."""
        if self.equation == FIRST:
            return "y", "y"
        if self.shared:  # two steps of one quantity
            return "q", "q"
        return "q", "v" if self.equation == SECOND else "p"

    @functools.cached_property
    def shared(self) -> bool:
        """Both slots hold one quantity and are mixed, so that they need one scale."""
        steps = range(self.first, min(self.first + 2, self.last))
        return any(m.beta for n in steps for m in self.method.micros(n, self.equation))

    def micros(self, n: int) -> tuple[Micro, ...]:
        """The micro-steps of step n; an evaluation outside of the interval is extrapolated from inside."""
        micros = self.method.micros(n, self.equation)
        if self.regular[0] <= n < self.regular[1] or self.autonomous:
            return micros
        return tuple(part for m in micros for part in self._inside(n, m))

    def _outside(self, n: int, m: Micro) -> bool:
        """A micro-step of step n asks the field outside of the interval."""
        at = n + m.tau
        (low, high) = self.reach
        return m.field != IDENTITY and not m.rk_sign and not low - EDGE <= at <= high + EDGE

    def _inside(self, n: int, m: Micro) -> tuple[Micro, ...]:
        """A micro-step as a sum of evaluations inside of the interval.

        f(t, x) as a polynomial in t through as many nodes as the method has orders, a step apart from the end
        of the interval inwards: its error is O(h^p) in at most a few steps of a run, O(h^(p+1)) in the
        solution. A run that is too short for such nodes is asked at the method's own times.

        Raises:
            ConfigError: such a run, of a field that declares its interval.
        """
        if not self._outside(n, m):
            return (m,)
        at = n + m.tau
        (low, high) = self.reach
        count = max(1, self.method.claims(self.equation).order)
        # At whole steps, so that tau does not depend on h.
        edge, inwards = (math.ceil(low - EDGE), 1.0) if at < low else (math.floor(high + EDGE), -1.0)
        room = high - edge if at < low else edge - low
        gap = inwards * min(1.0, room / max(1, count - 1))
        nodes = [edge + j * gap for j in range(count)] if gap else [float(edge)]
        weights = [math.prod((at - o) / (node - o) for o in nodes if o != node) for node in nodes]
        if sum(map(abs, weights)) > MOST_WEIGHT:
            if self.interval is None:
                return (m,)
            raise ConfigError(
                f"{self.method.name} looks {at - high if at > high else low - at:.2g} steps beyond the"
                f" field's interval {self.interval}, and a run of {self.steps} steps is too short to"
                " extrapolate from inside: take more steps, or a method that stays inside, such as"
                " 'kahan_li8'"
            )
        first, *rest = zip(nodes, weights)
        parts = [replace(m, gamma_coef=m.gamma_coef * first[1], tau=first[0] - n)]
        plain = replace(m, alpha=1.0, beta=0.0)
        return (*parts, *(replace(plain, gamma_coef=m.gamma_coef * w, tau=node - n) for node, w in rest))

    def time(self, n: int, tau: float = 0.0) -> float:
        """t0 + (n + tau) h, not outside of the limits by rounding: the same bits in both directions and both
        loops.
        """
        low, high = self.limits
        return min(max(self.t0 + (n + tau) * self.h, low), high)

    def stage_times(self, n: int, micro: Micro) -> tuple[float, ...]:
        """The times at which a micro-step of step ``n`` asks its field: one, or those of the stages."""
        t = self.time(n, micro.tau)
        if not micro.rk_sign:
            return (t,)
        low, high = self.limits
        h = self.h if micro.rk_sign > 0 else -self.h
        return tuple(min(max(t + c * h, low), high) for c in self.method.tableau.c)

    def step_time(self, n: int, theta: float = 0.0) -> float:
        """t0 + (n + theta) h."""
        return self.t0 + (n + theta) * self.h

    def phi(self, micro: Micro, x: Tensor, t: Tensor, h: Any, args: Sequence[Any]) -> Tensor:
        """Phi(t, x) of a micro-step."""
        if micro.field == IDENTITY:
            return x
        f = self.functions[micro.field]
        version = None if x.is_inference() else x._version
        try:
            if micro.rk_sign:
                value = increment(
                    self.method.tableau, f, t, h if micro.rk_sign > 0 else -h, x, args, self.limits
                )
            else:
                value = f(t, x, *args)
        except CallbackError as error:  # of a C function, which was told the time alone
            raise error.at(round((float(t) - self.t0) / self.h - micro.tau)) from error.__cause__
        if version is not None and x._version != version:
            raise UnsupportedError(
                "the field changed its argument in place; the step still needs it: let it work on a copy"
            )
        return value


def increment(
    tableau: Tableau,
    f: Callable[..., Tensor],
    t: Tensor,
    h: Any,
    x: Tensor,
    args: Sequence[Any],
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Tensor:
    """Psi_h(t, x) = h sum_i b_i k_i of an explicit Runge-Kutta step (summed in order, zero weights left out).

    The times of its stages are held inside of ``bounds``, which they can leave by rounding.
    """
    return staged(tableau, f, (_inside(t + c * h, bounds) for c in tableau.c), h, x, args)


def staged(
    tableau: Tableau,
    f: Callable[..., Tensor],
    times: Iterable[Tensor],
    h: Any,
    x: Tensor,
    args: Sequence[Any],
) -> Tensor:
    """:func:`increment` with the times of the stages as they are given."""
    ks: list[Tensor] = []
    for row, t in zip(tableau.a, times):
        stage = x
        moved = _weighted(row, ks)
        if moved is not None:
            stage = (x + _times(h, moved)).to(x.dtype)  # whatever the function returned
        k = f(t, stage, *args)
        ks.append(k.clone() if isinstance(k, Tensor) else k)  # it may return one buffer for all stages
    return _times(h, _weighted(tableau.b, ks))


def _times(h: Any, x: Tensor) -> Tensor:
    """h x in the dtype of ``x``, the same bits for a number and for a float64 scalar tensor."""
    if isinstance(h, Tensor) and x.ndim == 0:
        h = h.to(x.dtype)  # of two 0-d tensors the wider dtype wins
    return h * x


def _inside(t: Tensor, bounds: tuple[float, float]) -> Tensor:
    # Elsewhere asking would wait for the device.
    if t.device.type == "cpu" and bounds[0] <= t.item() <= bounds[1]:
        return t
    if not t.requires_grad:
        return t.clamp(*bounds)
    return t + (t.detach().clamp(*bounds) - t.detach())  # its derivative stays 1


def _weighted(weights: Sequence[float], ks: Sequence[Tensor]) -> Tensor | None:
    total = None
    for w, k in zip(weights, ks):
        if w:
            total = w * k if total is None else total + w * k
    return total
