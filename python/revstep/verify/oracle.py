"""The stored oracle: ordinary autograd through the same recurrence, every state kept, pure-torch reference arithmetic."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..ops import reference
from ..schemes import Coefficients
from ..stack import ReversibleStack
from ..state import StateFormat


class _Rounded(torch.autograd.Function):
    """A value computed elsewhere, with the gradient of ``alpha prev + beta cur + gamma f`` (rounding is the identity in backward)."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, coefficients: Coefficients, prev: Tensor, cur: Tensor, f: Tensor) -> Tensor:
        ctx.coefficients, ctx.dtype = coefficients, f.dtype
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        alpha, beta, gamma = ctx.coefficients
        return None, None, g * alpha, g * beta if beta else None, (g * gamma).to(ctx.dtype)


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
    for k, block in enumerate(blocks):
        c = scheme.start_coefficients(k, stack.start)
        f = block(views[-1], *args, **kwargs)
        states.append(reference.step(states[-2], states[-1], f.detach(), *c, fmt.frac_bits, None)[1])
        views.append(_Rounded.apply(_float(states[-1], fmt, x.dtype), c, views[-2], views[-1], f))
    if stack.readout == "pair":
        return views[-2], views[-1]
    return views[-1] if stack.readout == "last" else (views[-2] + views[-1]) * 0.5
