"""Coefficients of fixed-point steps: the dyadic grid on which they live, what exactness costs in carry bits
(design: general alpha), and the four numbers that a step kernel reports.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from torch import Tensor

from .. import _C  # after torch, to whose OpenMP runtime it binds
from ..errors import ConfigError

#: Coefficients of fixed-point steps are integer multiples of ``2**-COEFFICIENT_BITS``.
COEFFICIENT_BITS: int = _C.COEFFICIENT_BITS
#: Carries are kept for ``|alpha| >= 2**-MAX_CARRY_BITS``.
MAX_CARRY_BITS: int = _C.MAX_CARRY_BITS
#: Bits after the point of a fixed-point state, at most, by its width: one bit is for values up to 1, one for
#: the sign, and of 64 one for sums.
MAX_FRAC_BITS: dict[int, int] = {32: _C.MAX_FRAC_BITS_32, 64: _C.MAX_FRAC_BITS_64}
#: Carry words hold the bits of this many consecutive elements.
CARRY_GROUP = 32
#: Largest ``|alpha|`` and ``|beta|`` for which the integer products cannot overflow.
MAX_ALPHA: float = _C.MAX_ALPHA
MAX_BETA: float = _C.MAX_BETA


def snap(value: float) -> float:
    """Nearest multiple of ``2**-24``; exact in float64, so ``snap(snap(x)) == snap(x)``."""
    return round(value * 2**COEFFICIENT_BITS) / 2**COEFFICIENT_BITS


def numerator(value: float, name: str = "coefficient") -> int:
    """The integer ``A`` with ``value == A * 2**-24``.

    Raises:
        ConfigError: when ``value`` is not on the grid.
    """
    scaled = value * 2**COEFFICIENT_BITS
    if not math.isfinite(scaled) or scaled != math.floor(scaled):
        raise ConfigError(
            f"{name} = {value!r} is not a multiple of 2**-{COEFFICIENT_BITS}; "
            f"use revstep.ops.snap({value!r}) = {snap(value) if math.isfinite(scaled) else 'a finite number'}"
        )
    return int(scaled)


def carry_bits(alpha: float) -> int:
    """Bits an element needs so that ``U -> r(alpha U)`` can be undone: 0 for ``|alpha| >= 1``, else
    ``ceil(log2(1/|alpha|))``.

    Raises:
        ConfigError: ``alpha`` is zero (the step forgets ``prev``), too small or too large for the integer
            kernels, or no multiple of ``2**-24`` (see ``snap``).
    """
    a = abs(numerator(alpha, "alpha"))
    if a == 0:
        raise ConfigError("alpha = 0 is not reversible: the step would forget prev; choose |alpha| >= 2**-8")
    bits = max(0, COEFFICIENT_BITS - (a.bit_length() - 1)) if a < 2**COEFFICIENT_BITS else 0
    if bits > MAX_CARRY_BITS:
        raise ConfigError(
            f"|alpha| = {abs(alpha)} needs {bits} carry bits an element; at most {MAX_CARRY_BITS} are kept:"
            " choose |alpha| >= 2**-8"
        )
    if abs(alpha) > MAX_ALPHA:
        raise ConfigError(
            f"|alpha| = {abs(alpha)} is above {MAX_ALPHA}, the largest the fixed-point kernels take"
        )
    return bits


def carry_shape(n: int, bits: int) -> tuple[int, int]:
    """Shape of the int32 tensor that holds the carries of ``n`` elements: ``(ceil(n / 32),
    bits)``, or empty.
    """
    return ((n + CARRY_GROUP - 1) // CARRY_GROUP, bits) if bits else (0, 0)


# ---- Reading the four numbers a step kernel reports ----


class Stats(NamedTuple):
    """What one kernel pass saw: ``largest`` in real units, ``inf`` where a value was NaN."""

    checksum: int
    bad: int
    largest: float
    first_bad: int


def read_stats(stats: Tensor) -> list[Stats]:
    """``(4,)`` or ``(m, 4)`` int64 to a list of :class:`Stats`. One device-to-host copy (a synchronisation on
    CUDA).
    """
    rows = stats.reshape(-1, 4).tolist()
    return [
        Stats(c, bad, struct.unpack("<d", struct.pack("<q", bits))[0], first) for c, bad, bits, first in rows
    ]
