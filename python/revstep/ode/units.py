"""The unit of each component: from its start, and from how far the field moves it.

A grid of 2**-55 units with a range of 2**7 holds a solution to all the digits of a float where the unit is about
its size. A start of zero does not say that size, nor does the largest component say that of one which is decades
smaller. So the field is asked: a *pilot* takes Euler steps of h, 2h, 4h, ... from the start, a few evaluations in
all, until a component turns back or the end of the run is reached, and notes how large each component became and
how far one step of h moves it. It only chooses units; nothing of it enters the solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConfigError
from ..state import FixedPoint, StateFormat
from .equations import FIRST, SECOND
from .problem import Grid

#: Of the default fixed-point states: bits below the unit. 2**7 units of range, 2.8e-17 of a unit of grid.
DEFAULT_FRAC_BITS = 55
#: Range kept above the largest size that the pilot saw.
HEADROOM = 16.0
#: A component shares the slot's unit while that is at most this many times its own size ...
SHARED_BY_SIZE = 2.0**6
#: ... or this many times the largest increment of one step, whose leading 44 bits are then kept by the default format.
SHARED_BY_INCREMENT = 2.0**11
#: The pilot makes a unit at most this many times larger than the start says: a start that grows further is reported.
GROWTH = 2.0**10
#: A start that the first step outruns this many times says nothing ...
OUTRAN = 2.0**4
#: ... and its unit is at most this many times that step, of which 25 bits are then kept.
OUTRUN = 2.0**30
#: A slope of less than this share of the next one does not say in which direction a component moved.
TURN = 2.0**-4
#: Units go from 1 / LARGEST to LARGEST.
LARGEST = 2.0**190


@dataclass(frozen=True)
class Sizes:
    """What the pilot saw of each slot, per element.

    Args:
        top: largest magnitude.
        moved: largest magnitude of an increment over one step of h.
    """

    top: tuple[Tensor, Tensor]
    moved: tuple[Tensor, Tensor]


def make_grid(
    state: StateFormat | None,
    scale: Any,
    slots: tuple[Tensor, Tensor],
    shared: bool,
    pilot: Callable[[bool], Sizes] | None = None,
    pairs: bool = False,
    steps: int = 1,
) -> Grid:
    """The grid of a run. Default: FixedPoint(64, 55) in units chosen by :func:`chosen`.

    Args:
        state: the format, or None for the default one. It does not change the units.
        scale: a power of two, an array of them that broadcasts to the state, or a tuple of two of either, one a
            slot; None to choose.
        slots: their float values at the start.
        shared: both slots hold the same quantity and must have one scale.
        pilot: gives the sizes seen; called with False for the first step alone, with True for all of it.
        pairs: the last axis holds real and imaginary parts, which share a unit.
        steps: of the run, which the pilot need not go through where the first step says enough.

    Raises:
        ConfigError: a scale that is no power of two, two scales where one is needed, or a format that hides
            overflow.
    """
    if state is not None and not isinstance(state, StateFormat):
        raise ConfigError(f"state is {state!r}, expected revstep.FixedPoint(...) or revstep.Float(...)")
    if state is not None and state.exact and state.on_nonfinite != "raise":
        raise ConfigError("on_nonfinite='propagate' is for training with a loss scale; an integration raises: leave it out")
    fmt = FixedPoint(64, DEFAULT_FRAC_BITS) if state is None else state
    if scale is not None:
        if shared and isinstance(scale, tuple):
            raise ConfigError("scale is a pair, but this method holds the same quantity in both slots: give one scale")
        pair = scale if isinstance(scale, tuple) and len(scale) == 2 else (scale, scale)
        scales = tuple(_power_of_two(s, x, pairs) for s, x in zip(pair, slots))
    if not fmt.exact:  # a power of two changes nothing in floating point, and the compiled loop reads float slots as they are
        scales = (1.0, 1.0)
    elif scale is None:
        scales = chosen(slots, fmt, shared, pilot, pairs, steps)
    return Grid(fmt, scales, scale is None, pairs)  # type: ignore[arg-type]


def chosen(
    slots: tuple[Tensor, Tensor],
    fmt: StateFormat,
    shared: bool,
    pilot: Callable[[bool], Sizes] | None,
    pairs: bool = False,
    steps: int = 1,
) -> tuple[Any, Any]:
    """The scale of each slot: one number where one unit serves all its elements, else one an element.

    A slot's unit is the least power of two not below its largest value: at the start, or in the pilot where the
    start is zero or the pilot ran ahead of it. An element takes a smaller one only where the slot's would leave
    its size or its increments too few bits, and only as much smaller as needed.
    """
    starts = tuple(x.detach().abs().double() for x in slots)
    none = tuple(torch.zeros_like(s) for s in starts)
    sizes = pilot(False) if pilot is not None else Sizes(starts, none)
    most = tuple(_most(s, m.detach().double()) for s, m in zip(starts, sizes.moved))
    scales = _from(sizes, starts, most, fmt, shared, pairs)
    if pilot is not None and not _settled(scales, starts, sizes, steps):
        scales = _from(pilot(True), starts, most, fmt, shared, pairs)
    shown = [one(s) for s in scales]
    return tuple(s if isinstance(s, float) else full.to(x.dtype) for s, full, x in zip(shown, scales, slots))  # type: ignore[return-value]


def _most(start: Tensor, moved: Tensor) -> Tensor:
    """The largest unit that the pilot may choose for each element of a slot; ``moved``: by the first step."""
    said = GROWTH * start.max() if start.numel() else torch.zeros((), dtype=start.dtype, device=start.device)
    most = torch.where(moved >= OUTRAN * start, torch.clamp(OUTRUN * moved, min=said), said)
    return torch.where((start == 0) & (moved == 0), math.inf, most)


def _settled(scales: tuple[Tensor, Tensor], starts: tuple[Tensor, Tensor], sizes: Sizes, steps: int) -> bool:
    """The first evaluation was enough: every element shares its slot's unit, and a run at that speed stays in its range.

    A start of zero, or one that is only rounding (sin(pi)), is outrun at once.
    """
    for start, moved in zip(starts, sizes.moved):
        if start.numel() and not float(moved.max()) * steps <= HEADROOM * float(start.max()):
            return False
        if start.numel() and not bool(start.any()):
            return False
    return all(one(s) is not None for s in scales)


def _from(
    sizes: Sizes,
    starts: tuple[Tensor, Tensor],
    limits: tuple[Tensor, Tensor],
    fmt: StateFormat,
    shared: bool,
    pairs: bool,
) -> tuple[Tensor, Tensor]:
    units = []
    for i in (0, 1):
        seen = (sizes.top[i].detach(), sizes.moved[i], starts[i], limits[i])
        top, moved, start, limit = (_of_pair(x.double()) if pairs else x.double() for x in seen)
        largest = float(start.max()) if start.numel() else 0.0
        # The unit that has this range above what was seen; of formats wider than the default one it is the same.
        room = HEADROOM / min(fmt.limit, 2.0**7)
        top = torch.minimum(top, limit / room)
        needed = top * room
        sizes_of = needed if largest else top
        common = max(largest, float(sizes_of.max()) if top.numel() else 0.0) or 1.0
        most = torch.maximum(top * SHARED_BY_SIZE, moved * SHARED_BY_INCREMENT)
        unit = torch.where(most > 0, torch.minimum(_ceil(most), _ceil(torch.full_like(most, common))), common)
        # Another element that the pilot saw far away is no reason for this one to lose its start.
        unit = torch.minimum(unit, _ceil(torch.maximum(limit, start)))
        units.append(_ceil(torch.maximum(unit, needed)))
    if shared:
        units = [torch.maximum(*units)] * 2
    return units[0], units[1]


def _of_pair(x: Tensor) -> Tensor:
    """The larger one of the real and the imaginary part, for both."""
    return x.amax(-1, keepdim=True).expand_as(x) if x.numel() else x


def _ceil(x: Tensor) -> Tensor:
    """The least power of two not below, within the range of units."""
    mantissa, exponent = torch.frexp(x.clamp(1.0 / LARGEST, LARGEST))
    return torch.ldexp(torch.ones_like(x), exponent - (mantissa == 0.5).to(exponent.dtype))


def one(scale: Tensor) -> float | None:
    """The number that all elements are; None where they differ."""
    if not scale.numel():
        return 1.0
    low, high = float(scale.detach().min()), float(scale.detach().max())
    return low if low == high else None


def written(scales: Sequence[Any], pairs: bool = False) -> str:
    """The argument that gives these scales: ``scale=2.0**k``, a list of them, a pair of either.

    A scale of many components is written as the attribute of the error that carries it.
    """
    texts = [_text(s) for s in _outward(scales, pairs)]
    if None in texts:
        return "scale=error.scale (error being this exception)"
    return f"scale={texts[0]}" if len(set(texts)) == 1 else f"scale=({', '.join(texts)})"


def _text(scale: Any) -> str | None:
    if isinstance(scale, float):
        return f"2.0**{round(math.log2(scale))}"
    if scale.ndim == 1 and scale.numel() <= 8:
        return f"[{', '.join(_text(float(s)) for s in scale)}]"
    return None


def as_argument(scales: Sequence[Any], pairs: bool = False) -> Any:
    """The same as a value to pass: one number or tensor, or a pair of them."""
    scales = _outward(scales, pairs)
    texts = [_text(s) for s in scales]
    same = texts[0] is not None and texts[0] == texts[-1]
    return scales[0] if len(scales) == 1 or same else scales


def _outward(scales: Sequence[Any], pairs: bool) -> tuple[Any, ...]:
    return tuple(s if isinstance(s, float) or not pairs else s[..., 0] for s in scales)


def _power_of_two(scale: Any, like: Tensor, pairs: bool) -> Any:
    try:
        s = torch.as_tensor(scale, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"scale is {scale!r}, expected powers of two (2.0**k): {error}") from error
    mantissa, _ = torch.frexp(s)
    if not bool(((mantissa == 0.5) & torch.isfinite(s)).all()):
        raise ConfigError(f"scale is {scale!r}, expected powers of two (2.0**k), so that scaling rounds nothing")
    if s.ndim == 0:
        return float(s)
    if pairs:
        s = s[..., None]
    fits = s.ndim <= like.ndim and all(a in (1, b) for a, b in zip(reversed(s.shape), reversed(like.shape)))
    if not fits:
        shape = tuple(like.shape[:-1] if pairs else like.shape)
        given = tuple(s.shape[:-1] if pairs else s.shape)
        raise ConfigError(f"scale has shape {given}, which does not broadcast to the state's {shape}")
    return s.to(like.dtype).to(like.device)


# ---- the pilot ----


def pilot(
    equation: str,
    functions: Sequence[Callable[..., Tensor]],
    parts: Sequence[Tensor],
    slots: int | None,
    times: Callable[[float], Tensor],
    h: float,
    steps: int,
    args: Sequence[Any],
) -> Callable[[bool], Sizes]:
    """Sizes along Euler steps of h, 2h, 4h, ... from the start.

    Args:
        parts: ``(y,)``, ``(q, v)`` or ``(q, p)`` at the start, in floats.
        slots: None where the two slots hold the two parts; else the part that both hold.
        times: the time after so many steps, as the field sees it.
    """
    run = _Pilot(equation, functions, [p.detach() for p in parts], times, h, steps, args)

    def sizes(all_of_it: bool) -> Sizes:
        run.go(all_of_it)
        which = (0, len(run.tops) - 1) if slots is None else (slots, slots)
        return Sizes(*(tuple(kept[k] for k in which) for kept in (run.tops, run.moves)))

    return sizes


class _Pilot:
    def __init__(self, equation, functions, parts, times, h, steps, args):
        self.equation, self.functions, self.times = equation, functions, times
        self.xs, self.h, self.steps, self.args = list(parts), h, steps, args
        self.tops = [p.abs().double() for p in parts]
        self.moves = [torch.zeros_like(t) for t in self.tops]
        self.before: list[Tensor] | None = None
        self.going = torch.ones_like(self.tops[0], dtype=torch.bool)
        self.done, self.stride, self.over = 0, 1, steps == 0

    def go(self, all_of_it: bool) -> None:
        # In the caller's grad mode: a field that keeps what it computes at its first call keeps its graph too.
        while not self.over and (all_of_it or self.done == 0):
            self._step()

    def _slopes(self) -> list[Tensor]:
        t, fs = self.times(float(self.done)), self.functions
        if self.equation == FIRST:
            return [fs[0](t, self.xs[0].clone(), *self.args).detach().clone()]
        if self.equation == SECOND:
            return [self.xs[1], fs[0](t, self.xs[0].clone(), *self.args).detach().clone()]
        first = fs[0](t, self.xs[1].clone(), *self.args).detach().clone()
        return [first, fs[1](t, self.xs[0].clone(), *self.args).detach().clone()]

    def _step(self) -> None:
        try:
            slopes = self._slopes()
        except Exception:  # beyond the field's domain, or a field that is wrong: the run itself says so, and where
            self.over = True
            return
        turned = torch.zeros_like(self.going)
        if self.before is not None:
            for old, new in zip(self.before, slopes):
                # A slope that was next to nothing, at a start of zero but for rounding, has no sign to change.
                turned |= ((old * new < 0) & (old.abs() > TURN * new.abs())) | ~torch.isfinite(new)
        if self.equation == FIRST and turned.ndim:  # what one component did says when the others will turn
            turned = turned.any(-1, keepdim=True).expand_as(turned)
        self.going &= ~turned
        size = self.h * min(self.stride, self.steps - self.done)
        moved = [torch.where(self.going, size * s, torch.zeros_like(s)) for s in slopes]
        for i, s in enumerate(slopes):
            self.xs[i] = self.xs[i] + moved[i]
            step = (self.h * s).abs().double()
            self.moves[i] = torch.where(self.going & torch.isfinite(step), torch.maximum(self.moves[i], step), self.moves[i])
            top = self.xs[i].abs().double()
            self.tops[i] = torch.where(torch.isfinite(top), torch.maximum(self.tops[i], top), self.tops[i])
        self.before = slopes
        self.done += min(self.stride, self.steps - self.done)
        self.stride *= 2
        huge = max(float(t.max()) if t.numel() else 0.0 for t in self.tops) > math.sqrt(LARGEST) * LARGEST
        self.over = self.done >= self.steps or huge or not bool(self.going.any())
