"""Every operation in plain torch: the oracle of the tests, and what runs on devices without a kernel.

The arithmetic is the specification; the compiled kernels must agree with it bit for bit. Notation: a
fixed-point element is an integer ``X`` that stands for ``X * 2**-F``; coefficients are integers over
``2**24``; ``r(m) = (m + 2**23) >> 24``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ._coefficients import CARRY_GROUP, COEFFICIENT_BITS, carry_bits, carry_shape, numerator

_HALF = 1 << (COEFFICIENT_BITS - 1)
_MASK32 = 0xFFFFFFFF
_CHUNK = 1 << 22
_PERIOD = 128  # of the checksum's inner weights

#: Largest magnitude of a fixed-point element (symmetric), and the bound on a single increment, by dtype.
LIMIT = {torch.int32: 2**31 - 1, torch.int64: 2**62 - 1}
VALUE_LIMIT = {torch.int32: 2.0**31, torch.int64: 2.0**62}


def compute_dtype(value: torch.dtype, state: torch.dtype) -> torch.dtype:
    """Precision of the scalar arithmetic: float64 as soon as the value or a float state is, else float32."""
    return torch.float64 if torch.float64 in (value, state) else torch.float32


def quantise(f: Tensor, gamma: float, frac_bits: int, state: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """``D = rint((f * gamma) * 2**F)`` as int64 with 0 where out of range, the bad mask, and ``|v| * 2**-F``
    as float64.
    """
    v = f.to(compute_dtype(f.dtype, state))
    v = (v * gamma) * 2.0**frac_bits
    bad = ~(v.abs() < VALUE_LIMIT[state])
    magnitude = torch.where(v.isnan(), math.inf, v.abs().double() * 2.0**-frac_bits)
    d = torch.where(bad, torch.zeros_like(v), torch.round(v)).to(torch.int64)
    return d, bad, magnitude


def _scaled(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """``r(factor * x)`` as ``high * 2**32 + low``, exact for every int64 ``x``."""
    x = x.to(torch.int64)
    q = factor * (x >> 32)
    low = ((q & ((1 << COEFFICIENT_BITS) - 1)) << 8) + ((factor * (x & _MASK32) + _HALF) >> COEFFICIENT_BITS)
    return (q >> COEFFICIENT_BITS), low


def _wrapped(x: Tensor, factor: int) -> Tensor:
    high, low = _scaled(x, factor)
    return (high << 32) + low


def pack_carry(carry: Tensor, bits: int) -> Tensor:
    """Carries ``(n,)`` int64 to bit planes ``(ceil(n / 32), bits)`` int32."""
    groups, _ = carry_shape(carry.numel(), bits)
    padded = carry.new_zeros(groups * CARRY_GROUP)
    padded[: carry.numel()] = carry
    lanes = torch.arange(CARRY_GROUP, device=carry.device)
    grouped = padded.view(groups, CARRY_GROUP, 1)
    planes = (grouped >> torch.arange(bits, device=carry.device)) & 1  # (groups, 32, bits)
    words = (planes << lanes.view(1, CARRY_GROUP, 1)).sum(1)  # (groups, bits), 0 .. 2**32 - 1
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_carry(words: Tensor, n: int) -> Tensor:
    """Inverse of :func:`pack_carry`: ``(n,)`` int64."""
    lanes = torch.arange(CARRY_GROUP, device=words.device).view(1, CARRY_GROUP, 1)
    planes = ((words.to(torch.int64) & _MASK32).unsqueeze(1) >> lanes) & 1  # (groups, 32, bits)
    carry = (planes << torch.arange(words.shape[1], device=words.device)).sum(2)
    return carry.reshape(-1)[:n]


def _mixed(k: Tensor) -> Tensor:
    """An odd 32-bit number for each, another for every k below 2**31."""
    a = ((2 * k + 1) * 0x9E3779B1) & _MASK32
    a = a ^ ((a >> 15) & ~1)
    a = (a * 0x2C1B3C6D) & _MASK32
    return a ^ ((a >> 12) & ~1)


def checksum(x: Tensor) -> int:
    """Wrapping 64-bit sum of (index, bits) products; independent of the order of summation. Signed as in an
    int64.
    """
    flat = x.reshape(-1)
    bits = flat.view(torch.int32) if flat.element_size() == 4 else flat.view(torch.int64)
    total = 0
    for start in range(0, bits.numel(), _CHUNK):
        w = bits[start : start + _CHUNK].to(torch.int64)
        i = torch.arange(start, start + w.numel(), device=w.device)
        inner, outer = _mixed(i % _PERIOD), _mixed(_PERIOD + i // _PERIOD)
        part = (w & _MASK32) * inner
        if bits.dtype == torch.int64:
            part = part + ((w >> 32) & _MASK32) * (inner ^ 0x5BD1E994)
        total += int((part * outer).sum())
    total &= (1 << 64) - 1
    return total - (1 << 64) if total >= 1 << 63 else total


def _stats(out: Tensor, bad: Tensor, magnitude: Tensor) -> Tensor:
    """``[checksum, bad elements, float64 bits of the largest magnitude, index of the first bad element or
    -1]``, int64.
    """
    bad, magnitude = bad.reshape(-1), magnitude.reshape(-1)
    count = int(bad.sum())
    first = int(bad.to(torch.int8).argmax()) if count else -1
    largest = magnitude.max() if magnitude.numel() else magnitude.new_zeros(())
    bits = int(largest.reshape(1).view(torch.int64))
    return torch.tensor([checksum(out), count, bits, first], dtype=torch.int64, device=out.device)


def _view(x: Tensor, frac_bits: int, dtype: torch.dtype) -> Tensor:
    if x.dtype.is_floating_point:
        return x.to(dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (x.to(wide) * 2.0**-frac_bits).to(dtype)


def _maybe_view(x: Tensor, frac_bits: int, dtype: torch.dtype | None) -> Tensor:
    return x.new_empty(0, dtype=torch.float32) if dtype is None else _view(x, frac_bits, dtype)


def decode(state: Tensor, frac_bits: int, view_dtype: torch.dtype) -> Tensor:
    """The float view of a state: ``X * 2**-F`` rounded to ``view_dtype`` (through float32 below float64)."""
    view = _view(state, frac_bits, view_dtype)
    return view.clone() if view is state else view


def encode(
    x: Tensor, state_dtype: torch.dtype, frac_bits: int, view_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``X = rint(x * 2**F)`` (fixed point) or a cast (float). Returns ``(view, state, stats)``."""
    if state_dtype.is_floating_point:
        out = x.to(state_dtype, copy=True)
        return _maybe_view(out, frac_bits, view_dtype), out, _float_stats(out)
    out, bad, magnitude = quantise(x, 1.0, frac_bits, state_dtype)
    over = out.abs() > LIMIT[state_dtype]
    out = torch.where(over, torch.zeros_like(out), out)
    magnitude = torch.where(bad | over, magnitude, out.abs().double() * 2.0**-frac_bits)
    state = out.to(state_dtype)
    return _maybe_view(state, frac_bits, view_dtype), state, _stats(state, bad | over, magnitude)


def _float_stats(out: Tensor) -> Tensor:
    magnitude = out.abs().double()
    return _stats(out, ~out.isfinite(), torch.where(magnitude.isnan(), math.inf, magnitude))


def _no_carry(x: Tensor) -> Tensor:
    return x.new_empty((0, 0), dtype=torch.int32)


def _float_next(
    prev: Tensor, cur: Tensor | None, f: Tensor, alpha: float, beta: float, gamma: float
) -> Tensor:
    wide = compute_dtype(f.dtype, prev.dtype)
    t = prev.to(wide) if alpha == 1.0 else prev.to(wide) * alpha
    if beta != 0.0:
        t = t + cur.to(wide) * beta
    return (t + f.to(wide) * gamma).to(prev.dtype)


def _fixed_next(
    prev: Tensor, cur: Tensor | None, f: Tensor, alpha: float, beta: float, gamma: float, frac_bits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``next``, the carry of every element as int64, the bad mask, magnitudes in real units."""
    a, b = numerator(alpha, "alpha"), numerator(beta, "beta")
    d, bad, magnitude = quantise(f, gamma, frac_bits, prev.dtype)
    high, low = _scaled(prev, a)
    y = (high << 32) + low
    high, low = high + (d >> 32), low + (d & _MASK32)
    if b:
        h, lo = _scaled(cur, b)
        high, low = high + h, low + lo
    high, low = high + (low >> 32), low & _MASK32  # first: the sum itself may wrap 64 bits
    total = (high << 32) + low
    over = (high < -(2**30)) | (high >= 2**30) | (total.abs() > LIMIT[prev.dtype])
    unwrapped = (high.double() * 2.0**32 + low.double()).abs() * 2.0**-frac_bits
    magnitude = torch.where(bad, magnitude, unwrapped)
    carries = (
        prev.to(torch.int64) * (1 if a > 0 else -1) - _lowest_preimage(y, abs(a))
        if carry_bits(alpha)
        else torch.zeros_like(total)
    )
    return _low_bits(total, prev.dtype), carries, bad | over, magnitude


def _finish(
    out: Tensor,
    frac_bits: int,
    view_dtype: torch.dtype | None,
    bad: Tensor | None = None,
    magnitude: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """View, state, statistics; those of a float state follow from the state."""
    return (
        _maybe_view(out, frac_bits, view_dtype),
        out,
        _float_stats(out) if bad is None else _stats(out, bad, magnitude),
    )


def step(
    prev: Tensor,
    cur: Tensor | None,
    f: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    frac_bits: int,
    view_dtype: torch.dtype | None,
    choice: Tensor | None = None,
    second: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``next = alpha prev + beta cur + gamma f``. Returns ``(view, next, carry, stats)``.

    Row ``b`` takes the coefficients ``second`` where ``choice[b]`` is 1: by definition it is that of the step
    of all rows with them. Every element has the carry bits of the greedier set.
    """
    sets = _sets((alpha, beta, gamma), second)
    if prev.dtype.is_floating_point:
        view, out, stats = _finish(
            _by_row(choice, [_float_next(prev, cur, f, *c) for c in sets]), frac_bits, view_dtype
        )
        return view, out, _no_carry(out), stats
    out, carries, bad, magnitude = (
        _by_row(choice, parts) for parts in zip(*(_fixed_next(prev, cur, f, *c, frac_bits) for c in sets))
    )
    view, out, stats = _finish(out, frac_bits, view_dtype, bad, magnitude)
    bits = max(carry_bits(c[0]) for c in sets)
    return view, out, pack_carry(carries.reshape(-1), bits) if bits else _no_carry(out), stats


def scale(
    g: Tensor,
    factors: Sequence[float],
    last_dtype: torch.dtype,
    choice: Tensor | None = None,
    second: Sequence[float] | None = None,
) -> list[Tensor]:
    """``factor * g`` for each factor, rounded to the dtype of ``g``; the last one then in ``last_dtype``. 0
    gives 0, whatever ``g`` is.

    Row ``b`` takes the factors ``second`` where ``choice[b]`` is 1.
    """
    out = [_by_row(choice, [_times(g, factor) for factor in one]) for one in zip(*_sets(factors, second))]
    return [*out[:-1], out[-1].to(last_dtype)]


def _sets(first: Sequence[float], second: Sequence[float] | None) -> list[Sequence[float]]:
    return [first] if second is None else [first, second]


def _times(g: Tensor, factor: float) -> Tensor:
    return (
        torch.zeros_like(g, memory_format=torch.contiguous_format)
        if factor == 0.0
        else (g * factor).contiguous()
    )


def _by_row(choice: Tensor | None, of_set: Sequence[Tensor]) -> Tensor:
    """Each row of the set it takes: of the second where ``choice`` is not 0."""
    if choice is None:
        return of_set[0]
    first, second = of_set
    return torch.where((choice != 0).view(-1, *(1,) * (first.ndim - 1)), second, first)


def _float_prev(
    nxt: Tensor, cur: Tensor | None, f: Tensor, alpha: float, beta: float, gamma: float
) -> Tensor:
    wide = compute_dtype(f.dtype, nxt.dtype)
    t = nxt.to(wide)
    if beta != 0.0:
        t = t - cur.to(wide) * beta
    t = t - f.to(wide) * gamma
    return (t if alpha == 1.0 else -t if alpha == -1.0 else t / alpha).to(nxt.dtype)


def _fixed_prev(
    nxt: Tensor,
    cur: Tensor | None,
    f: Tensor,
    carries: Tensor | None,
    alpha: float,
    beta: float,
    gamma: float,
    frac_bits: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """``prev``, the bad mask, magnitudes in real units. ``carries``: one an element."""
    a, b = numerator(alpha, "alpha"), numerator(beta, "beta")
    d, bad, magnitude = quantise(f, gamma, frac_bits, nxt.dtype)
    y = nxt.to(torch.int64) - d
    if b:
        y = y - _wrapped(cur, b)
    if abs(a) == 1 << COEFFICIENT_BITS:
        prev = y
    else:
        prev = _lowest_preimage(y, abs(a))
        if carry_bits(alpha):
            prev = prev + carries
    prev = prev if a > 0 else -prev
    over = prev.abs() > LIMIT[nxt.dtype]
    magnitude = torch.where(bad, magnitude, prev.double().abs() * 2.0**-frac_bits)
    return _low_bits(prev, nxt.dtype), bad | over, magnitude


def inverse(
    nxt: Tensor,
    cur: Tensor | None,
    f: Tensor,
    carry: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    frac_bits: int,
    view_dtype: torch.dtype | None,
    choice: Tensor | None = None,
    second: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``prev`` from the ``next`` of :func:`step` with the same coefficients, exact in fixed point. Returns
    ``(view, prev, stats)``.

    On int64 states that no good forward step made, this wraps at 64 bits where the compiled kernel decides in
    128.
    """
    sets = _sets((alpha, beta, gamma), second)
    if nxt.dtype.is_floating_point:
        return _finish(_by_row(choice, [_float_prev(nxt, cur, f, *c) for c in sets]), frac_bits, view_dtype)
    carries = _carries(carry, nxt, max(carry_bits(c[0]) for c in sets))
    out, bad, magnitude = (
        _by_row(choice, parts)
        for parts in zip(*(_fixed_prev(nxt, cur, f, carries, *c, frac_bits) for c in sets))
    )
    return _finish(out, frac_bits, view_dtype, bad, magnitude)


def _carries(carry: Tensor, state: Tensor, bits: int) -> Tensor | None:
    return unpack_carry(carry, state.numel()).view(state.shape) if bits else None


def _lowest_preimage(y: Tensor, a: int) -> Tensor:
    """Smallest ``U`` with ``r(a U) = y``: ``ceil((y 2**24 - 2**23) / a)``, split so that nothing overflows
    int64.
    """
    q = torch.div(y, a, rounding_mode="floor")
    r = (y - q * a << COEFFICIENT_BITS) - _HALF
    return (q << COEFFICIENT_BITS) - torch.div(-r, a, rounding_mode="floor")


def _low_bits(x: Tensor, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int64:
        return x
    low = x & _MASK32
    return torch.where(low >= 2**31, low - 2**32, low).to(torch.int32)


# ---- looking ----

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def different(a: Tensor, b: Tensor) -> Tensor:
    """How many elements of two tensors of one shape and dtype differ in their bits: an int64 scalar."""
    words = _WORDS[a.element_size()]
    return (a.contiguous().view(words) != b.contiguous().view(words)).sum()


def fingerprint(x: Tensor, every: int, seed: int) -> Tensor:
    """What ``csrc/core/sample.hpp`` defines: an int64 scalar."""
    # what lies in memory, without the flag
    x = x.conj() if x.is_conj() else torch._neg_view(x) if x.is_neg() else x
    x = torch.view_as_real(x) if x.element_size() == 16 else x
    words = _WORDS[x.element_size()]
    sizes, strides, offset = list(x.shape), list(x.stride()), x.storage_offset()
    lying = sorted((d for d in zip(strides, sizes) if d[0] != 0 and d[1] != 1), key=lambda d: -d[0])
    if 0 in sizes:
        return torch.zeros((), dtype=torch.int64, device=x.device)
    # as it lies in memory
    x = x.as_strided([n for _, n in lying], [s for s, _ in lying], offset).reshape(-1).view(words)
    group = 64 // x.element_size()
    units = -(-x.numel() // group)
    j = torch.arange(-(-units // every), device=x.device)
    among = (units - j * every).clamp_max(every)
    unit = j * every + (_mixed((j + seed) & _MASK32) * among >> 32)
    i = (unit[:, None] * group + torch.arange(group, device=x.device)).view(-1)
    i = i[i < x.numel()]
    word = x[i].to(torch.int64)
    inner, outer = _mixed(i % _PERIOD), _mixed(i // _PERIOD + _PERIOD)
    if x.element_size() == 8:
        term = (word & _MASK32) * inner + (word >> 32 & _MASK32) * (inner ^ 0x5BD1E994)
    else:
        term = (word & ((1 << 8 * x.element_size()) - 1)) * inner
    return (term * outer).sum()
