"""What a stack tells of its own reconstruction: the report of the last backward pass, and every state of a
forward pass with the little of it that brings the rest back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Report:
    """Reconstruction status of one backward pass.

    Attributes:
        exact: every rebuilt state had the checksum its forward counterpart had.
        layers: states rebuilt and compared (blocks below the last one that needs a gradient are not rebuilt).
        matched: how many of them had the forward pass's bits.
        max_error: relative max-norm error of the rebuilt input; 0.0 when exact, None when it was not
            measured.
        headroom: range of the state format over the largest state value of the forward pass; inf for float
            states.
        bytes_saved: bytes kept for this backward pass: two states, checksums, carries, RNG records.
        kept: layers whose graph the forward pass kept, at the end of the stack.
        checksum: 64 bits over the checksums of all rebuilt states: equal for two passes (ranks, runs) that
            rebuilt the same bits.
        bytes_outside: bytes that the blocks kept beside what autograd saves for them (on a function's
            ``ctx``, on a module, in a hook's list), over all layers that are rebuilt. They grow with depth
            and no placeholder replaces them. Measured in a stack's first pass with a backward, None in later
            ones and where blocks are compiled or sharded.
    """

    exact: bool
    layers: int
    matched: int
    max_error: float | None
    headroom: float
    bytes_saved: int
    kept: int
    checksum: int
    # the first pass and the second are not told apart by it
    bytes_outside: int | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        if self.exact:
            outside = ""
            if self.bytes_outside:
                outside = f"; the blocks keep {self.bytes_outside:,} bytes outside of autograd"
            return f"exact ({self.layers} states){outside}"
        error = "error not measured" if self.max_error is None else f"error {self.max_error:.2g}"
        return f"{error} ({self.matched} of {self.layers} states bit-equal)"


def combined(checksums: Iterable[int]) -> int:
    """One 64-bit number for several, in their order: h -> 31 h + c modulo 2**64."""
    total = 0
    for c in checksums:
        total = (31 * total + c) & (2**64 - 1)
    return total


def layer_name(step: int, halves: int) -> str:
    """How messages call a step of the recurrence: ``layer 3``, or ``layer 3 (G)`` where a layer has two
    half-steps.
    """
    return f"layer {step}" if halves == 1 else f"layer {step // 2} ({'FG'[step % 2]})"


# ---- Every state of a forward pass, and the little of it that brings the rest back ----


class LastTwo(NamedTuple):
    """The last two states with what their reconstruction needs beside the blocks: carries and generator
    records.
    """

    prev: Tensor
    cur: Tensor
    tape: Any = None


class States(list[Tensor]):
    """States ``s[0], s[1], ..., s[steps + 1]`` in the state format's dtype (``s[0]`` and ``s[1]`` are the
    start pair).

    ``last_two`` is what :meth:`~revstep.ReversibleStack.reconstruct` takes.
    """

    last_two: LastTwo | None = None
