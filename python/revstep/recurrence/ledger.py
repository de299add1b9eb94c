"""What the kernels say of the states they write: largest value, values out of range, checksum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Stats


class Ledger:
    """Statistics in the order in which states were written, (4,) int64 each as the kernels return them.

    On the CPU an entry is looked at as it comes (:meth:`look`), so that an error stops the run at its place.
    A look at another device waits for it: there entries are collected (:meth:`later`) and looked at together
    (:meth:`read`). Whoever keeps the ledger says what an entry means; it knows nobody, so that no circle of
    references keeps states alive.

    Attributes:
        largest: the largest magnitude looked at, in real units.
    """

    __slots__ = ("_pending", "largest")

    def __init__(self) -> None:
        self._pending: list[tuple[Any, Tensor]] = []
        self.largest = 0.0

    def look(self, stats: Tensor) -> Stats:
        """The entry at once."""
        found = ops.read_stats(stats)[0]
        if found.largest > self.largest:
            self.largest = found.largest
        return found

    def later(self, place: Any, stats: Tensor) -> int:
        """Keep an entry of a state that was written there. Returns how many wait."""
        self._pending.append((place, stats))
        return len(self._pending)

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
