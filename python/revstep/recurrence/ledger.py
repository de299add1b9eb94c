"""What the kernels say of the states they write: largest value, values out of range, checksum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Stats


class Ledger:
    """Statistics in the order in which states were written, looked at as soon as that costs nothing.

    On the CPU each entry is looked at as it comes, so that an error stops the run at its place. A look at another device waits for it: there
    entries are collected.

    Args:
        every: entries that are looked at together; None: only :meth:`read` looks.
        seen: called with each entry, ``(place, stats)``; raises where the state left its format.

    Attributes:
        largest: the largest magnitude looked at, in real units.
    """

    __slots__ = ("_every", "_pending", "_seen", "largest")

    def __init__(self, every: int | None, seen: Callable[[Any, Stats], None]):
        self._every, self._seen = every, seen
        self._pending: list[tuple[Any, Tensor]] = []
        self.largest = 0.0

    def wrote(self, place: Any, stats: Tensor) -> None:
        """A state was written there, with these statistics: (4,) int64 as the kernels return them."""
        self._pending.append((place, stats))
        if self._every is not None and len(self._pending) >= self._every:
            self.read()

    def read(self) -> None:
        """Look at all that has come in. Raises what ``seen`` raises."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        rows = pending[0][1] if len(pending) == 1 else torch.stack([stats for _, stats in pending])
        for (place, _), stats in zip(pending, ops.read_stats(rows)):
            self.largest = max(self.largest, stats.largest)
            self._seen(place, stats)

    def headroom(self, limit: float) -> float:
        """How many times larger the states could have been in a format that holds +-``limit``."""
        return limit / self.largest if self.largest else float("inf")
