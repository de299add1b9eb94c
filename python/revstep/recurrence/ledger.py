"""What the kernels say of the states they write: largest value, values out of range, checksum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Stats


class Ledger:
    """Statistics in the order in which states were written, looked at as soon as that costs nothing.

    On the CPU each entry is looked at as it comes, so that an error stops the run at its place. A look at another device waits for it: there
    entries are collected. Whoever keeps the ledger says what an entry means; it knows nobody, so that no circle of references keeps states alive.

    Args:
        every: entries that are looked at together; None: only when asked.

    Attributes:
        largest: the largest magnitude looked at, in real units.
    """

    __slots__ = ("_every", "_pending", "largest")

    def __init__(self, every: int | None):
        self._every = every
        self._pending: list[tuple[Any, Tensor]] = []
        self.largest = 0.0

    def wrote(self, place: Any, stats: Tensor) -> bool:
        """A state was written there, with these statistics: (4,) int64 as the kernels return them. True when it is time to :meth:`read`."""
        self._pending.append((place, stats))
        return self._every is not None and len(self._pending) >= self._every

    def read(self) -> Iterator[tuple[Any, Stats]]:
        """All entries that have come in since, (place, stats)."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        rows = pending[0][1] if len(pending) == 1 else torch.stack([stats for _, stats in pending])
        for (place, _), stats in zip(pending, ops.read_stats(rows)):
            self.largest = max(self.largest, stats.largest)
            yield place, stats

    def headroom(self, limit: float) -> float:
        """How many times larger the states could have been in a format that holds +-``limit``."""
        return limit / self.largest if self.largest else float("inf")
