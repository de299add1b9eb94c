"""The stored oracle: ordinary autograd through the same recurrence, every state kept, pure-torch reference arithmetic."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import reference
from ..schemes import Coefficients, RowCoefficients
from ..stack import ReversibleStack
from ..stack.arguments import increment
from ..state import StateFormat


class _Rounded(torch.autograd.Function):
    """A value computed elsewhere, with the gradient of ``alpha prev + beta cur + gamma f`` (rounding is the identity in backward)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, coefficients: Coefficients, prev: Tensor, cur: Tensor, f: Tensor) -> Tensor:
        ctx.coefficients, ctx.dtype = coefficients, f.dtype
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        c = ctx.coefficients
        g_prev, g_cur, g_f = (_per_row(c, lambda one, i=i: g * one[i]) for i in range(3))
        return None, None, g_prev, None if isinstance(c, Coefficients) and c.beta == 0.0 else g_cur, g_f.to(ctx.dtype)


def _per_row(c: Coefficients | RowCoefficients, compute: Callable[[Coefficients], Tensor]) -> Tensor:
    """``compute`` with the coefficients; where rows differ, with both sets, and each row taken from its own."""
    if isinstance(c, Coefficients):
        return compute(c)
    first, second = compute(c.first), compute(c.second)
    return torch.stack([(second if chosen else first)[row] for row, chosen in enumerate(c.choice.tolist())])


def _float(state: Tensor, fmt: StateFormat, dtype: torch.dtype) -> Tensor:
    return reference.decode(state, fmt.frac_bits, dtype)


def stored(stack: ReversibleStack, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What ``stack(x, ...)`` computes, with nothing rebuilt: memory grows with depth, and ``backward`` is torch's own.

    Shares with the stack only its blocks and the scheme's coefficients. Same shapes, dtypes and readout.
    """
    fmt, scheme = stack.state, stack.scheme
    blocks = [half for b in stack.blocks for half in (b.halves() if scheme.halves == 2 else (b,))]
    start = reference.encode(x.detach(), fmt.dtype, fmt.frac_bits, None)[1]
    states = [start, start]
    entry = Coefficients(1.0, 0.0, 0.0)
    view = _Rounded.apply(_float(start, fmt, x.dtype), entry, x, x, torch.zeros_like(x))
    views = [view, view]
    for c, block in zip(scheme.draw(len(blocks), stack.start, len(x), stack.training), blocks):
        f = increment(block(views[-1], *args, **kwargs))[0]
        if isinstance(c, Coefficients) and c.alpha == 0.0:  # the residual step: on integers it is the one with prev = cur
            states[-2], views[-2], c = states[-1], views[-1], Coefficients(c.beta, 0.0, c.gamma)
        step = functools.partial(reference.step, states[-2], states[-1], f.detach())
        states.append(_per_row(c, lambda one, step=step: step(*one, fmt.frac_bits, None)[1]))
        views.append(_Rounded.apply(_float(states[-1], fmt, x.dtype), c, views[-2], views[-1], f))
    if stack.readout == "pair":
        return views[-2], views[-1]
    return views[-1] if stack.readout == "last" else (views[-2] + views[-1]) * 0.5
