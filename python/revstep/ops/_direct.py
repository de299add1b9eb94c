"""The shortest way to the kernels on the CPU, for states so small that the way is most of a call.

What is not plain in every respect (another shape, a view with gaps, a dtype that is refused, a choice that
is neither 0 nor 1) returns None here and goes the long way, :mod:`._kernels`, which also says what is wrong.
Same kernels, same bits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _C
from ..errors import ConfigError
from ._coefficients import carry_shape
from ._forks import threads
from ._formats import STATE_DTYPES, VALUE_DTYPES, check_format
from ._kernels import _CODE, _NO_CARRY, MAX_SCALED, check_coefficients, new_stats

_empty_like = torch.empty_like


@functools.lru_cache(maxsize=256)
def kind(state: torch.dtype, value: torch.dtype, view: torch.dtype | None, frac_bits: int) -> object | None:
    """What calls of these dtypes have in common; None where the contract refuses them."""
    if state not in STATE_DTYPES or value not in VALUE_DTYPES:
        return None
    try:
        check_format(state, frac_bits, view)
    except ConfigError:
        return None
    view_type = _CODE[view or torch.float32]
    return _C.Kind(state=_CODE[state], value_type=_CODE[value], view_type=view_type, frac_bits=frac_bits)


@functools.lru_cache(maxsize=256)
def _like_carry(n: int, bits: int) -> Tensor:
    """A tensor of the shape that the carries of ``n`` elements have, and next to no memory: ``empty_like`` of
    a tensor is the shortest way to memory.
    """
    shape = carry_shape(n, bits)
    return torch.empty((), dtype=torch.int32).expand(shape) if n else torch.empty(shape, dtype=torch.int32)


def step(
    prev: Tensor, cur: Tensor | None, f: Tensor, alpha: float, beta: float, gamma: float, frac_bits: int,
    view_dtype: torch.dtype | None, choice: Tensor | None, second: Sequence[float] | None, in_place: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:  # fmt: skip
    about = kind(prev.dtype, f.dtype, view_dtype, frac_bits)
    if about is None or not _fit(prev, cur, f, beta) or not _rows(prev, cur, choice, second, 3):
        return None
    bits = check_coefficients(prev.dtype, alpha, beta)
    if second is not None:
        bits = max(bits, check_coefficients(prev.dtype, second[0], second[1]))
    n = prev.numel()
    carry = _empty_like(_like_carry(n, bits)) if bits else _NO_CARRY
    given = about, n, prev, cur, f, carry, alpha, beta, gamma, bits
    found = _run(_C.step_of, _C.step_by_row, *given, view_dtype, choice, second, in_place)
    return None if found is None else (found[0], found[1], carry, found[2])


def inverse(
    nxt: Tensor, cur: Tensor | None, f: Tensor, carry: Tensor, alpha: float, beta: float, gamma: float,
    frac_bits: int, view_dtype: torch.dtype | None, choice: Tensor | None, second: Sequence[float] | None,
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    about = kind(nxt.dtype, f.dtype, view_dtype, frac_bits)
    if about is None or not _fit(nxt, cur, f, beta) or not _rows(nxt, cur, choice, second, 3):
        return None
    bits = check_coefficients(nxt.dtype, alpha, beta)
    if second is not None:
        bits = max(bits, check_coefficients(nxt.dtype, second[0], second[1]))
    n = nxt.numel()
    if bits and (
        carry.dtype is not torch.int32 or carry.shape != carry_shape(n, bits) or not carry.is_contiguous()
    ):
        return None
    given = about, n, nxt, cur, f, carry, alpha, beta, gamma, bits
    return _run(_C.inverse_of, _C.inverse_by_row, *given, view_dtype, choice, second, in_place)


def _run(
    whole, by_row, about, n, state, cur, f, carry, alpha, beta, gamma, bits, view_dtype, choice, second,
    in_place,
) -> tuple[Tensor, Tensor, Tensor] | None:  # fmt: skip
    """New state's float view, new state, statistics."""
    view = _new_view(state, f, view_dtype)
    out = state if in_place else _empty_like(state)
    stats = new_stats(state)
    reads = beta != 0.0 or (second is not None and second[1] != 0.0)
    given = (
        about, n, state.data_ptr(), cur.data_ptr() if reads else 0, f.data_ptr(), out.data_ptr(),
        view.data_ptr(), carry.data_ptr(), stats.data_ptr(), alpha, beta, gamma, bits, threads(),
    )  # fmt: skip
    if choice is None:
        whole(*given)
    elif not by_row(*given, choice.data_ptr(), choice.numel(), *second):
        return None
    return view, out, stats


def _fit(state: Tensor, cur: Tensor | None, f: Tensor, beta: float) -> bool:
    """The operands have one shape, no gaps, and are all there."""
    shape = state.shape
    if f.shape != shape or not (state.is_contiguous() and f.is_contiguous()) or state.is_neg() or f.is_neg():
        return False
    if cur is None:
        return beta == 0.0
    return cur.shape == shape and cur.dtype is state.dtype and cur.is_contiguous() and not cur.is_neg()


def _rows(
    x: Tensor, cur: Tensor | None, choice: Tensor | None, second: Sequence[float] | None, numbers: int
) -> bool:
    """No choice among rows, or one number of the second set's for each of the first, and a row for each
    choice. ``cur`` has to be there for a second set.
    """
    if choice is None or second is None:
        return choice is second
    return (
        cur is not None
        and len(second) == numbers
        and choice.dtype is torch.uint8
        and x.ndim > 0
        and choice.shape == x.shape[:1]
        and choice.is_contiguous()
    )


def _new_view(like: Tensor, f: Tensor, view_dtype: torch.dtype | None) -> Tensor:
    """Without elements where it is not wanted."""
    if view_dtype is f.dtype:
        return _empty_like(f)
    return (
        like.new_empty(0, dtype=torch.float32) if view_dtype is None else _empty_like(like, dtype=view_dtype)
    )


def encode(
    x: Tensor, state_dtype: torch.dtype, frac_bits: int, view_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor] | None:
    about = kind(state_dtype, x.dtype, view_dtype, frac_bits)
    if about is None or not x.is_contiguous() or x.is_neg():
        return None
    out, view, stats = _empty_like(x, dtype=state_dtype), _new_view(x, x, view_dtype), new_stats(x)
    _C.encode_of(about, x.numel(), x.data_ptr(), out.data_ptr(), view.data_ptr(), stats.data_ptr(), threads())
    return view, out, stats


def decode(state: Tensor, frac_bits: int, view_dtype: torch.dtype) -> Tensor | None:
    about = kind(state.dtype, view_dtype, view_dtype, frac_bits)
    if about is None or not state.is_contiguous() or state.is_neg():
        return None
    view = _empty_like(state, dtype=view_dtype)
    _C.decode_of(about, state.numel(), state.data_ptr(), view.data_ptr(), threads())
    return view


def scale(
    g: Tensor, factors: Sequence[float], last_dtype: torch.dtype, choice: Tensor | None,
    second: Sequence[float] | None,
) -> list[Tensor] | None:  # fmt: skip
    about = kind(torch.float32, g.dtype, last_dtype, 0)
    count = len(factors)
    if about is None or not 1 <= count <= MAX_SCALED or not g.is_contiguous() or g.is_neg():
        return None
    if not _rows(g, g, choice, second, count):
        return None
    out = [_empty_like(g) for _ in range(count - 1)]
    out.append(_empty_like(g) if last_dtype is g.dtype else _empty_like(g, dtype=last_dtype))
    rows = (0, 0, []) if choice is None else (choice.data_ptr(), choice.numel(), second)
    done = _C.scale_of(about, g.numel(), g.data_ptr(), [x.data_ptr() for x in out], factors, threads(), *rows)
    return out if done else None
