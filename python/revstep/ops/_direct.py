"""Steps on small states: the plain calls of :func:`~revstep.ops.step` and :func:`~revstep.ops.inverse`, which
is most of them, by the shortest way to the kernel.

What is not plain in every respect (another shape, a view with gaps, a dtype that is refused, rows that
choose) returns None here and goes the long way, :mod:`._kernels`, which also says what is wrong. Same
kernels, same bits.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import _C
from ..errors import ConfigError
from ._coefficients import carry_shape
from ._forks import threads
from ._kernels import _CODE, _NO_CARRY, check_coefficients, check_format, new_stats

_empty_like = torch.empty_like


@functools.lru_cache(maxsize=256)
def kind(state: torch.dtype, value: torch.dtype, view: torch.dtype | None, frac_bits: int) -> object | None:
    """What calls of these dtypes have in common; None where the contract refuses them."""
    if state not in _CODE or value not in _CODE or not value.is_floating_point:
        return None
    try:
        check_format(state, frac_bits, view)
    except ConfigError:
        return None
    return _C.StepKind(
        state=_CODE[state],
        value_type=_CODE[value],
        view_type=_CODE[view or torch.float32],
        frac_bits=frac_bits,
    )


@functools.lru_cache(maxsize=256)
def _like_carry(n: int, bits: int) -> Tensor:
    """A tensor of the shape that the carries of ``n`` elements have, and next to no memory."""
    shape = carry_shape(n, bits)
    return torch.empty((), dtype=torch.int32).expand(shape) if n else torch.empty(shape, dtype=torch.int32)


def step(
    prev: Tensor,
    cur: Tensor | None,
    f: Tensor,
    alpha: float,
    beta: float,
    gamma: float,
    frac_bits: int,
    view_dtype: torch.dtype | None,
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    state = prev.dtype
    about = kind(state, f.dtype, view_dtype, frac_bits)
    if about is None or not _fit(prev, cur, f, beta):
        return None
    bits = check_coefficients(state, alpha, beta)
    n = prev.numel()
    carry = _empty_like(_like_carry(n, bits)) if bits else _NO_CARRY
    out, view, stats = _outputs(prev, f, view_dtype, in_place)
    _C.step_of(
        about,
        n,
        prev.data_ptr(),
        cur.data_ptr() if beta else 0,
        f.data_ptr(),
        out.data_ptr(),
        view.data_ptr(),
        carry.data_ptr(),
        stats.data_ptr(),
        alpha,
        beta,
        gamma,
        bits,
        threads(),
    )
    return view, out, carry, stats


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
    in_place: bool,
) -> tuple[Tensor, Tensor, Tensor] | None:
    state = nxt.dtype
    about = kind(state, f.dtype, view_dtype, frac_bits)
    if about is None or not _fit(nxt, cur, f, beta):
        return None
    bits = check_coefficients(state, alpha, beta)
    n = nxt.numel()
    if bits and (
        carry.dtype is not torch.int32 or carry.shape != carry_shape(n, bits) or not carry.is_contiguous()
    ):
        return None
    out, view, stats = _outputs(nxt, f, view_dtype, in_place)
    _C.inverse_of(
        about,
        n,
        nxt.data_ptr(),
        cur.data_ptr() if beta else 0,
        f.data_ptr(),
        out.data_ptr(),
        view.data_ptr(),
        carry.data_ptr(),
        stats.data_ptr(),
        alpha,
        beta,
        gamma,
        bits,
        threads(),
    )
    return view, out, stats


def _fit(state: Tensor, cur: Tensor | None, f: Tensor, beta: float) -> bool:
    """The operands have one shape, no gaps, and are all there."""
    shape = state.shape
    if f.shape != shape or not (state.is_contiguous() and f.is_contiguous()) or state.is_neg() or f.is_neg():
        return False
    if cur is None:
        return beta == 0.0
    return (
        cur.shape == shape
        and cur.dtype is state.dtype
        and (beta == 0.0 or (cur.is_contiguous() and not cur.is_neg()))
    )


def _outputs(
    state: Tensor, f: Tensor, view_dtype: torch.dtype | None, in_place: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """New state, its float view (without elements where it is not wanted), statistics."""
    if view_dtype is f.dtype:
        view = _empty_like(f)
    elif view_dtype is None:
        view = state.new_empty(0, dtype=torch.float32)
    else:
        view = torch.empty_like(state, dtype=view_dtype)
    return state if in_place else _empty_like(state), view, new_stats(state)
