"""The three autograd nodes around the blocks: start, step, gate. None of them saves an activation per layer.

The blocks' own graphs are the ordinary autograd graphs (their saved tensors are placeholders, see :mod:`.tape`), so
gradients are those of autograd through the recurrence, in autograd's own order, and parameter gradients appear layer by
layer. Rounding to the state grid is the identity in backward (straight-through).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..schemes.base import Coefficients
from ..state import StateFormat

#: The nodes differentiate themselves: skip the operators' own autograd layer (it costs more than a small step).
below_autograd = torch._C._AutoDispatchBelowAutograd


class StartCell:
    """Carries the state out of :class:`Start` beside the autograd graph."""

    __slots__ = ("format", "state", "stats")

    def __init__(self, fmt: StateFormat):
        self.format = fmt


class StepCell:
    """One step's inputs and outputs that are not differentiable: integer states, carry, statistics."""

    __slots__ = ("carry", "coefficients", "cur", "format", "next", "prev", "stats")

    def __init__(self, fmt: StateFormat, coefficients: Coefficients, prev: Tensor, cur: Tensor):
        self.format, self.coefficients, self.prev, self.cur = fmt, coefficients, prev, cur


class Start(torch.autograd.Function):
    """x -> its float view on the state grid."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cell: StartCell) -> Tensor:
        with below_autograd():
            view, state, cell.stats = cell.format.encode(x)
        cell.state = state.detach()
        return view

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return g, None


class Step(torch.autograd.Function):
    """(prev, cur, f) -> next, as float views: g_prev = alpha g, g_cur = beta g, g_f = gamma g."""

    @staticmethod
    def forward(ctx: Any, prev: Tensor, cur: Tensor, f: Tensor, cell: StepCell) -> Tensor:
        fmt = cell.format
        ctx.coefficients, ctx.value_dtype = cell.coefficients, f.dtype
        view_dtype = fmt.view_dtype(cur.dtype)
        with below_autograd():
            view, nxt, cell.carry, cell.stats = ops.step(cell.prev, cell.cur, f, *cell.coefficients, fmt.frac_bits, view_dtype)
        cell.next = nxt.detach()
        return nxt if view_dtype is None else view

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        alpha, beta, gamma = ctx.coefficients
        needs = ctx.needs_input_grad
        return (
            _times(g, alpha) if needs[0] else None,
            _times(g, beta) if needs[1] and beta != 0.0 else None,
            _times(g, gamma).to(ctx.value_dtype) if needs[2] else None,
            None,
        )


def _times(g: Tensor, factor: float) -> Tensor:
    return g if factor == 1.0 else g * factor  # a product with 1 has the same bits and costs a pass over memory


class Gate(torch.autograd.Function):
    """Identity on the float views of the last two taped states; saves those states, and in backward hands them to the tape.

    Every gradient into the taped blocks passes through here first, so the tape is always wound before a block asks it.
    Saving them the ordinary way makes retain_graph, saved-tensor hooks and version checks mean what they always mean.
    """

    @staticmethod
    def forward(ctx: Any, prev: Tensor, cur: Tensor, tape: Any, saved: tuple[Tensor, ...], alias: bool) -> tuple[Tensor, Tensor]:
        ctx.tape = tape
        ctx.save_for_backward(*saved)
        ctx.set_materialize_grads(False)
        # A float state is its own view: hand out a copy, so that an in-place operation on the output is harmless.
        return (prev.clone(), cur.clone()) if alias else (prev.detach(), cur.detach())

    @staticmethod
    def backward(ctx: Any, g_prev: Tensor | None, g_cur: Tensor | None) -> tuple:
        ctx.tape.wind(ctx.saved_tensors, pin=torch.is_grad_enabled())
        return g_prev, g_cur, None, None, None
