"""The formats in which a stack holds the state that goes from layer to layer: fixed point, in which every
step can be undone bit for bit, and floating point, in which the error is measured.
"""

from __future__ import annotations

import abc
import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import ops
from ..errors import ConfigError
from ..ops import MAX_FRAC_BITS
from ._places import Layer

# ------------------------------------------------------------------------------------------------------------
# What a stack needs to know of a state format.


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
        """``(view, state, stats)`` of a float tensor; ``view`` is ``state`` itself where no separate view is
        needed.
        """
        view_dtype = self.view_dtype(block or x.dtype)
        view, state, stats = ops.encode(x, self.dtype, self.frac_bits, view_dtype)
        return (state if view_dtype is None else view), state, stats

    def decode(self, state: Tensor, block: torch.dtype) -> Tensor:
        """Float view of a state in the block's dtype; the state itself when it already is one."""
        return state if state.dtype == block else ops.decode(state, self.frac_bits, block)


# ---- Fixed-point states: integer adds are exact, so every step can be undone bit for bit ----

_DTYPE = {32: torch.int32, 64: torch.int64}
_DEFAULT_FRAC = {32: 20, 64: 32}
_LIMIT = {32: 2**31 - 1, 64: 2**62 - 1}


@dataclass(frozen=True)
class FixedPoint(StateFormat):
    """States as integers ``X`` that stand for ``X * 2**-frac_bits``.

    A block reads the float view ``X * 2**-F`` in its own dtype, and its output enters as ``rint(gamma f
    2**F)``; the same integers give the same float view in both directions, so the rebuilt state is the
    original at any depth and for any weights.

    Args:
        bits: 32 (default) or 64.
        frac_bits: ``F``; default 20 for 32 bits (range +-2048, grid 9.5e-7) and 32 for 64 bits (range
            +-2**30, grid 2.3e-10).
        on_nonfinite: ``"raise"`` (default) raises StateOverflowError for a value out of range, NaN or
            infinite; ``"propagate"`` makes the whole output NaN instead, so that a GradScaler skips the step.

    Raises:
        ConfigError: on an option that is not one of these.

    Source: Levesque and Verlet, J. Stat. Phys. 72 (1993); Rein and Tamayo, MNRAS 473 (2018).
    """

    bits: int = 32
    frac_bits: int = field(default=None)  # type: ignore[assignment]
    on_nonfinite: str = "raise"
    exact = True

    def __post_init__(self) -> None:
        if self.bits not in _DTYPE:
            raise ConfigError(f"FixedPoint(bits={self.bits!r}): expected 32 or 64")
        if self.frac_bits is None:
            object.__setattr__(self, "frac_bits", _DEFAULT_FRAC[self.bits])
        top = MAX_FRAC_BITS[self.bits]
        if (
            not isinstance(self.frac_bits, int)
            or isinstance(self.frac_bits, bool)
            or not 0 <= self.frac_bits <= top
        ):
            raise ConfigError(
                f"FixedPoint(bits={self.bits}, frac_bits={self.frac_bits!r}): expected an integer from 0 to"
                f" {top}"
            )
        if self.on_nonfinite not in ("raise", "propagate"):
            raise ConfigError(
                f"FixedPoint(on_nonfinite={self.on_nonfinite!r}): expected 'raise' or 'propagate'"
            )

    def __str__(self) -> str:
        return f"FixedPoint(bits={self.bits}, frac_bits={self.frac_bits})"

    @property
    def dtype(self) -> torch.dtype:
        """torch.int32 or torch.int64."""
        return _DTYPE[self.bits]

    @property
    def limit(self) -> float:
        return _LIMIT[self.bits] * 2.0**-self.frac_bits

    @property
    def spec(self) -> str:
        """The format as the string that stands for it on the command line, e.g. "fixed32:20"."""
        return f"fixed{self.bits}:{self.frac_bits}"

    @property
    def grid(self) -> float:
        """Distance between neighbouring values, ``2**-frac_bits``."""
        return 2.0**-self.frac_bits

    def wider(self, largest: float, least: float = 0.0) -> FixedPoint | None:
        for needed in (max(2.0 * largest, least), max(largest, least)):  # twice that if there is a format
            if self.bits == 64:  # who has 64 bits keeps them, and as much of the grid as the range allows
                candidates = [FixedPoint(64, f) for f in range(self.frac_bits - 1, -1, -1)]
            else:
                candidates = [FixedPoint(32, f) for f in range(20, 11, -2)] + [
                    FixedPoint(64, f) for f in range(32, -1, -2)
                ]
            for wider in candidates:
                if wider.limit > max(needed, self.limit):
                    return wider
        return None


# ------------------------------------------------------------------------------------------------------------
# Float states: the inverse is exact in real arithmetic only, and its rounding drift is measured and reported.


@dataclass(frozen=True)
class Float(StateFormat):
    """States in ordinary floating point. Reconstruction is *algebraic*: every backward pass measures its
    error.

    Args:
        dtype: torch.float32 (default) or torch.float64.
        max_error: relative error of the rebuilt input (max norm) above which backward warns; its gradients
            are then those of another network. The measured error is always in ``stack.report``.

    Raises:
        ConfigError: on a dtype that is neither.
    """

    dtype: torch.dtype = torch.float32
    max_error: float = 1e-3
    exact = False
    frac_bits = 0
    on_nonfinite = "propagate"

    def __post_init__(self) -> None:
        if self.dtype not in (torch.float32, torch.float64):
            raise ConfigError(
                f"Float(dtype={self.dtype!r}): expected torch.float32 or torch.float64 (a narrower state"
                " loses the input within a few layers)"
            )

    def __str__(self) -> str:
        return f"Float({self.dtype})"

    @property
    def limit(self) -> float:
        return math.inf
