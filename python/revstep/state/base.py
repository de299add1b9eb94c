"""What a stack needs to know of a state format."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from .. import ops
from .places import Layer


class StateFormat(abc.ABC):
    """A number format for states. ``exact``: the inverse of a step returns the same bits."""

    exact: bool
    dtype: torch.dtype
    frac_bits: int
    on_nonfinite: str

    @property
    @abc.abstractmethod
    def limit(self) -> float:
        """Largest absolute value the format holds."""

    def advice(self, largest: float) -> str:
        """What to do when a value as large as ``largest`` left the range after a block."""
        return Layer("", 0).advice(ops.Stats(0, 1, largest, -1), self)

    def wider(self, largest: float, least: float = 0.0) -> StateFormat | None:
        """The next format of a larger range; None where there is none, or no need of one.

        Args:
            largest: a value it is to hold, with a factor of two in hand if there is such a format.
            least: a bound it is to hold too, without that factor.
        """
        return None

    def view_dtype(self, block: torch.dtype) -> torch.dtype | None:
        """dtype of the separate float view blocks read, or None when the state itself serves as one."""
        return None if block == self.dtype else block

    def encode(self, x: Tensor, block: torch.dtype | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """``(view, state, stats)`` of a float tensor; ``view`` is ``state`` itself where no separate view is needed."""
        view_dtype = self.view_dtype(block or x.dtype)
        view, state, stats = ops.encode(x, self.dtype, self.frac_bits, view_dtype)
        return (state if view_dtype is None else view), state, stats

    def decode(self, state: Tensor, block: torch.dtype) -> Tensor:
        """Float view of a state in the block's dtype; the state itself when it already is one."""
        return state if state.dtype == block else ops.decode(state, self.frac_bits, block)
