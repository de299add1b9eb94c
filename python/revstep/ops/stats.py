"""Reading the four numbers a step kernel reports."""

from __future__ import annotations

import struct
from typing import NamedTuple

from torch import Tensor


class Stats(NamedTuple):
    """What one kernel pass saw: ``largest`` in real units, ``inf`` where a value was NaN."""

    checksum: int
    bad: int
    largest: float
    first_bad: int


def read_stats(stats: Tensor) -> list[Stats]:
    """``(4,)`` or ``(m, 4)`` int64 to a list of :class:`Stats`. One device-to-host copy (a synchronisation on CUDA)."""
    rows = stats.reshape(-1, 4).tolist()
    return [Stats(c, bad, struct.unpack("<d", struct.pack("<q", bits))[0], first) for c, bad, bits, first in rows]
