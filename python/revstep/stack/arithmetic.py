"""One step, its inverse and its gradient, for coefficients of the whole state or of each row."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import ops
from ..schemes.base import Coefficients, RowCoefficients

#: The stack's nodes differentiate themselves: skip the operators' own autograd layer (it costs more than a small step).
below_autograd = torch._C._AutoDispatchBelowAutograd


def _two(c: RowCoefficients) -> tuple[list[float], list[float], list[float]]:
    alpha, beta, gamma = ([a, b] for a, b in zip(c.first, c.second))
    return alpha, beta, gamma


def take(
    c: Coefficients | RowCoefficients, prev: Tensor, cur: Tensor, f: Tensor, frac_bits: int, view_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``next = alpha prev + beta cur + gamma f``: (view, next, carry, stats)."""
    with below_autograd():
        if isinstance(c, Coefficients):
            return ops.step(prev, cur, f, *c, frac_bits, view_dtype)
        return ops.step_rows(prev, cur, f, c.choice, *_two(c), frac_bits, view_dtype)


def undo(
    c: Coefficients | RowCoefficients, nxt: Tensor, cur: Tensor, f: Tensor, carry: Tensor, frac_bits: int, view_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """``prev`` from ``next``: (view, prev, stats)."""
    with below_autograd():
        if isinstance(c, Coefficients):
            return ops.inverse(nxt, cur, f, carry, *c, frac_bits, view_dtype)
        return ops.inverse_rows(nxt, cur, f, carry, c.choice, *_two(c), frac_bits, view_dtype)


def times(g: Tensor, c: Coefficients | RowCoefficients, which: str) -> Tensor | None:
    """``g`` times the named coefficient; None where it is zero."""
    if isinstance(c, Coefficients):
        return _scaled(g, getattr(c, which))
    first, second = _scaled(g, getattr(c.first, which)), _scaled(g, getattr(c.second, which))
    if first is None and second is None:
        return None
    zero = torch.zeros_like(g) if first is None or second is None else None
    rows = c.choice.view(-1, *[1] * (g.ndim - 1)) != 0
    return torch.where(rows, zero if second is None else second, zero if first is None else first)


def _scaled(g: Tensor, factor: float) -> Tensor | None:
    if factor == 0.0:
        return None
    return g if factor == 1.0 else g * factor  # a product with 1 has the same bits and costs a pass over memory
