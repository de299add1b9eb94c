"""Two states that walk: a step writes one of them from both, and is undone bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..schemes.base import Coefficients, RowCoefficients
from .arithmetic import take, undo

AnyCoefficients = Coefficients | RowCoefficients


class Pair:
    """The two states of a recurrence, in the slots 0 and 1.

    A step replaces the state X[i] of one slot, and undoing it brings it back:

        X[i] <- alpha X[i] + beta X[1 - i] + gamma f

    In a stack the slots take turns: state ``s[k]`` is in slot ``k % 2``, and step k writes ``s[k + 2]`` over
    it. In an integration each micro-step says which slot it moves.

    Attributes:
        states: the two states, in the dtype of their format.
        views: their float values where somebody has them, else None. A step lets go of the one it replaces.
    """

    __slots__ = ("frac_bits", "states", "views")

    def __init__(self, states: Sequence[Tensor], frac_bits: int, views: Sequence[Tensor | None] = (None, None)):
        self.states, self.frac_bits, self.views = list(states), frac_bits, list(views)

    def take(self, i: int, c: AnyCoefficients, f: Tensor, view_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Step slot ``i`` with the increment ``f``. Returns (carry, stats).

        ``view_dtype``: the kernel writes the float view of the new state too.
        """
        states = self.states
        view, states[i], carry, stats = take(c, states[i], states[1 - i], f, self.frac_bits, view_dtype)
        self.views[i] = None if view_dtype is None else view
        return carry, stats

    def undo(self, i: int, c: AnyCoefficients, f: Tensor, carry: Tensor, view_dtype: torch.dtype | None = None) -> Tensor:
        """The state that slot ``i`` had before the step with the same ``c`` and ``f``. Returns stats."""
        states = self.states
        view, states[i], stats = undo(c, states[i], states[1 - i], f, carry, self.frac_bits, view_dtype)
        self.views[i] = None if view_dtype is None else view
        return stats
