"""The unit of each component: from its start, and from how far the field moves it.

A grid of 2**-55 units with a range of 2**7 holds a solution to all the digits of a float where the unit is
about its size. A start of zero does not say that size, nor does the largest component say that of one which
is decades smaller. So the field is asked: a *pilot* takes Euler steps of h, 2h, 4h, ... from the start, a few
evaluations in all, until a component turns back or the end of the run is reached, and notes how large each
component became and how far one step of h moves it. It only chooses units; nothing of it enters the solution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from ..state import FixedPoint, StateFormat
from ._pilot import LARGEST, Sizes, numbers
from ._problem import Grid

#: Of the default fixed-point states: bits below the unit. 2**7 units of range, 2.8e-17 of a unit of grid.
DEFAULT_FRAC_BITS = 55
#: Range kept above the largest size that the pilot saw.
HEADROOM = 16.0
#: A component shares the slot's unit while that is at most this many times its own size ...
SHARED_BY_SIZE = 2.0**6
#: ... or this many times the largest increment of one step, whose leading 44 bits are then kept by the
#: default format.
SHARED_BY_INCREMENT = 2.0**11
#: Of increments that come with 24 bits or fewer so many are kept instead.
SHORT_INCREMENT = 28
#: A component that does not start at zero is believed to grow this many times at most, so that its start
#: keeps its bits.
GROWTH = 2.0**10
#: A unit that proved too small is tried this many times larger, and so on at most TRIES times: more would
#: lose digits.
REACH, TRIES = 2.0**12, 1
#: A start that the first step outruns this many times says nothing: it is zero but for rounding (sin(pi)) ...
OUTRAN = 2.0**4
#: ... and it is believed to grow this many times that step at most, of which 38 bits are then kept.
OUTRUN = 2.0**20


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
        scale: a power of two, an array of them that broadcasts to the state, or a tuple of two of either, one
            a slot; None to choose.
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
        raise ConfigError(
            "on_nonfinite='propagate' is for training with a loss scale; an integration raises: leave it out"
        )
    fmt = FixedPoint(64, DEFAULT_FRAC_BITS) if state is None else state
    if scale is not None:
        if shared and isinstance(scale, tuple):
            raise ConfigError(
                "scale is a pair, but this method holds the same quantity in both slots: give one scale"
            )
        pair = scale if isinstance(scale, tuple) and len(scale) == 2 else (scale, scale)
        scales = tuple(_power_of_two(s, x, pairs) for s, x in zip(pair, slots))
    # A power of two changes nothing in floating point, and the compiled loop reads float slots as they are
    if not fmt.exact:
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

    A slot's unit is the least power of two not below its largest value: at the start, or in the pilot where
    the start is zero or the pilot ran ahead of it. An element takes a smaller one only where the slot's would
    leave its size or its increments too few bits, and only as much smaller as needed.
    """
    if not slots[0].numel():
        return 1.0, 1.0
    starts = np.abs(np.stack([numbers(x) for x in slots]))
    sizes = pilot(False) if pilot is not None else Sizes(starts, np.zeros_like(starts))
    first = _of_pair(sizes.moved) if pairs else sizes.moved
    said = _of_pair(starts) if pairs else starts
    said = np.where(first >= OUTRAN * said, 0.0, said)
    by_increment = SHARED_BY_INCREMENT
    if slots[0].dtype != torch.float64:
        by_increment = 2.0 ** max(0, fmt.frac_bits - SHORT_INCREMENT)
    found = _from(sizes, said, first, fmt, by_increment, shared, pairs)
    if pilot is not None and not _settled(found, said, first, steps):
        found = _from(pilot(True), said, first, fmt, by_increment, shared, pairs)
    return tuple(_shown(full, x) for full, x in zip(found, slots))  # type: ignore[return-value]


def _settled(found: np.ndarray, said: np.ndarray, first: np.ndarray, steps: int) -> bool:
    """The first evaluation was enough: every element shares its slot's unit, and a run at that speed stays in
    its range.
    """
    if not all(units.min() == units.max() for units in found):
        return False
    most, fastest = (x.reshape(2, -1).max(1) for x in (said, first))
    return bool((most > 0).all() and (fastest * steps <= HEADROOM * most).all())


def _shown(found: np.ndarray, like: Tensor) -> float | Tensor:
    """The number that all units of a slot are, or a tensor of them."""
    low = float(found.min())
    return low if low == found.max() else torch.tensor(found, dtype=like.dtype, device=like.device)


def _from(
    sizes: Sizes,
    said: np.ndarray,
    first: np.ndarray,
    fmt: StateFormat,
    by_increment: float,
    shared: bool,
    pairs: bool,
) -> np.ndarray:
    """The units of both slots, (2, ...). ``said``: the starts that say something; ``first``: moved by the
    first step.
    """
    top, moved = ((_of_pair(x) if pairs else x) for x in (sizes.top, sizes.moved))
    largest = said.reshape(2, -1).max(1)
    top = np.minimum(top, _most(said, first))
    common = _a_slot([size or float(top[i].max()) or 1.0 for i, size in enumerate(largest.tolist())], top)
    # The unit that has this range above what was seen, where the start itself says nothing of that size.
    needed = np.where(top > 2.0**7 * said, top * (HEADROOM / 2.0**7), 0.0)
    # A format with less range than the default one needs larger units for the same start.
    if fmt.limit < 2.0**7:
        needed = np.maximum(needed, said * (2.0**7 / fmt.limit))
    most = np.maximum(top * SHARED_BY_SIZE, moved * by_increment)
    common = _ceil(common)
    unit = np.where(most > 0, np.minimum(_ceil(most), common), common)
    units = _ceil(np.maximum(unit, needed))
    return np.broadcast_to(units.max(0), units.shape) if shared else units


def _most(said: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The largest size that is believed of each element: a small one can become as large as those
    beside it.
    """
    beside = _a_slot(said.reshape(2, -1).max(1), said)
    grown = np.maximum(said * GROWTH, beside)
    return np.where(said > 0, grown, np.where(first > 0, np.maximum(first * OUTRUN, beside), math.inf))


def _a_slot(numbers: Sequence[float] | np.ndarray, like: np.ndarray) -> np.ndarray:
    """One number a slot, in a shape that broadcasts to both slots."""
    return np.asarray(numbers, dtype=np.float64).reshape(-1, *(1 for _ in like.shape[1:]))


def _of_pair(x: np.ndarray) -> np.ndarray:
    """The larger one of the real and the imaginary part, for both."""
    return np.broadcast_to(x.max(-1, keepdims=True), x.shape) if x.size else x


def _ceil(x: np.ndarray) -> np.ndarray:
    """The least power of two not below, within the range of units."""
    mantissa, exponent = np.frexp(np.minimum(np.maximum(x, 1.0 / LARGEST), LARGEST))
    return np.ldexp(1.0, exponent - (mantissa == 0.5))


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
        raise ConfigError(
            f"scale is {scale!r}, expected powers of two (2.0**k), so that scaling rounds nothing"
        )
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


def again(grid: Grid, slots: tuple[Tensor, Tensor], advised: Any) -> Grid | None:
    """Other units after a run left its range, where the pilot could not know better; None: the start had said
    it.

    A solution that stays near an unstable point for long is larger later than any pilot sees. A slot that
    started at zero gets a unit REACH times larger; in another one, elements with units of their own get at
    most that of the slot.

    Args:
        grid: in which the run failed.
        slots: float values at the start.
        advised: the scales that hold the value that failed, from the error.
    """
    pair = advised if isinstance(advised, tuple) else (advised, advised)
    scales = []
    moved = False
    for old, new, start in zip(grid.scales, pair, slots):
        full, wanted = (numbers(torch.as_tensor(s, dtype=torch.float64)) for s in (old, new))
        if not (wanted > full).any():
            scales.append(old)
            continue
        size = np.abs(numbers(start))
        larger = np.broadcast_to(full * REACH, np.broadcast_shapes(full.shape, size.shape))
        if size.any():  # the start has said it, for itself and for those that share its unit
            larger = np.minimum(full.max(), np.where(size > 0, _ceil(size * GROWTH), full.max()))
        larger = np.maximum(np.minimum(larger, LARGEST), full)
        moved = moved or bool((larger > full).any())
        scales.append(_shown(larger, start))
    return Grid(grid.format, (scales[0], scales[1]), True, grid.pairs) if moved else None
