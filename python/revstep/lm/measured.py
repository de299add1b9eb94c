"""What the processes of a run measured in one step, and what becomes of it in the log."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..models.tally import Tally, worst
from ..stack.report import Report

_PACKED = struct.Struct("<dddqQbb")


@dataclass(kw_only=True)
class Measured(Tally):
    """One process, over the micro-batches of a step.

    Attributes:
        loss: mean over its rows. peak_memory: bytes.
    """

    loss: float = 0.0
    peak_memory: int = 0

    def take(self, loss: float, report: Report | None) -> None:
        """A micro-batch's share of the loss, and what its backward reported."""
        self.loss += loss
        self.add(report)

    def pack(self) -> bytes:
        """As bytes, of one length for all."""
        error, exact = math.nan if self.max_error is None else self.max_error, -1 if self.exact is None else self.exact
        return _PACKED.pack(self.loss, error, self.headroom, self.peak_memory, self.checksum or 0, exact, self.checksum is not None)


def joined(parts: Iterable[bytes]) -> dict[str, Any]:
    """The log's fields, of what each process packed, by rank: the mean loss, the worst of the rest, and of checksums all, in hexadecimal digits."""
    losses, errors, headrooms, peaks, checksums, exacts, summed = zip(*map(_PACKED.unpack, parts))
    error = 0.0
    for e in errors:
        error = worst(error, None if math.isnan(e) else e)
    return {
        "loss": sum(losses) / len(losses),
        "exact": False if 0 in exacts else None if -1 in exacts else True,
        "max_error": error,
        "headroom": min(headrooms),
        "peak_memory": max(peaks),
        "checksums": [f"{c:016x}" if there else None for c, there in zip(checksums, summed)] if any(summed) else None,
    }
