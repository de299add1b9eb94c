"""What the backward passes of a run reported, added up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..stack._report import Report, combined


@dataclass(kw_only=True)
class Tally:
    """Over the backward passes that were looked at.

    Attributes:
        passes: how many rebuilt states; states: how many they rebuilt; matched: how many of those had the
            forward pass's bits.
        exact: all of them were exact; None: nothing was rebuilt.
        max_error, headroom: the worst of the reports, as :class:`~revstep.stack.Report` has them; an error
        that was not measured once stays unknown.
        checksum: of the reports, in their order; None: nothing was rebuilt.
        bytes_saved: what the stack kept for the last pass; None: nothing was rebuilt.
    """

    passes: int = 0
    states: int = 0
    matched: int = 0
    exact: bool | None = None
    max_error: float | None = 0.0
    headroom: float = math.inf
    checksum: int | None = None
    bytes_saved: int | None = None

    def add(self, report: Report | None) -> None:
        """One more pass; None: it rebuilt nothing."""
        if report is None:
            return
        self.passes = self.passes + 1
        self.states = self.states + report.layers
        self.matched = self.matched + report.matched
        self.exact = report.exact and self.exact is not False
        self.max_error = worst(self.max_error, report.max_error)
        self.headroom = min(self.headroom, report.headroom)
        self.checksum = (
            report.checksum if self.checksum is None else combined((self.checksum, report.checksum))
        )
        self.bytes_saved = report.bytes_saved

    @property
    def reconstruction(self) -> str:
        """In words, for a log."""
        if not self.passes:
            return "nothing to rebuild"
        return (
            f"{'exact' if self.states == self.matched else 'NOT EXACT'} ({self.matched:,} of {self.states:,}"
            f" states bit-equal in {self.passes:,} passes)"
        )


def worst(a: float | None, b: float | None) -> float | None:
    """The larger error; one that was not measured stays unknown."""
    return None if a is None or b is None else max(a, b)
