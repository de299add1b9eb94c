"""The check on every backward pass: each rebuilt state against the checksum of the state the forward pass computed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import ops
from ..errors import ReconstructionError, ReconstructionWarning
from ..schemes.base import Coefficients, RowCoefficients
from ..state import StateFormat
from ..state.places import Layer, Place, StackInput, overflow
from .report import Report, combined, layer_name

_CAUSES = (
    "likely causes: the block is random or keeps hidden state outside torch's generators, its weights or inputs changed between forward and "
    "backward, another kernel was chosen (SDPA backend, matmul precision, autotuning; a block compiled by hand whose float attributes differ by layer: "
    "stack.compile), or a kernel is not deterministic. "
    "`revstep.verify.reconstruction` finds which; torch.use_deterministic_algorithms(True) or a deterministic block mends it"
)


class Audit:
    """Collects kernel statistics: range in the forward pass, checksums in the backward pass.

    On the CPU each number is looked at as it comes, so that an error names its layer at once. On other devices the
    forward statistics are read once at the end of the pass, and the comparisons once at the end of backward.
    """

    def __init__(self, fmt: StateFormat, halves: int, checks: bool, immediate: bool, publish: Callable[[Report | None], None]):
        self.format, self.halves, self.checks, self._immediate, self._publish = fmt, halves, checks, immediate, publish
        self.forward: list[ops.Stats] = []  # of s[0], s[1], ..., as far as taped
        self.poisoned = False
        self.shape: Sequence[int] = ()  # of every state, and the coefficients of every step, for messages
        self.coefficients: Sequence[Coefficients | RowCoefficients] = ()
        self.trains = False
        self.bytes_saved = self.layers_kept = 0
        self._pending: list[Tensor] = []
        self._kept: dict[int, Tensor] = {}
        self._rebuilt: dict[int, Tensor | ops.Stats] = {}
        self._start: Tensor | None = None
        self._error: Tensor | None = None

    # ---- forward ----

    def wrote(self, stats: Tensor) -> None:
        """Statistics of the next state, in order from s[0]."""
        self._pending.append(stats)
        if self._immediate:
            self.read()

    def read(self) -> None:
        """Look at what has come in. Raises StateOverflowError for formats that raise."""
        if not self._pending:
            return
        for stats in ops.read_stats(self._pending[0] if len(self._pending) == 1 else torch.stack(self._pending)):
            if stats.bad and self.format.exact:
                if self.format.on_nonfinite == "raise":
                    raise overflow(stats, self.format, self._place(len(self.forward)), self.shape)
                self.poisoned = True
            self.forward.append(stats)
        self._pending.clear()

    def _place(self, k: int) -> Place:
        """Where state s[k] comes from."""
        if k < 2:
            return StackInput(k)
        c = self.coefficients[k - 2] if k - 2 < len(self.coefficients) else None
        sets = () if c is None else (c,) if isinstance(c, Coefficients) else (c.first, c.second)
        weights = max((abs(one.alpha) + abs(one.beta) for one in sets), default=0.0)
        return Layer(layer_name(k - 2, self.halves), (k - 2) // self.halves, weights, self.trains)

    @property
    def headroom(self) -> float:
        largest = max((s.largest for s in self.forward), default=0.0)
        return self.format.limit / largest if largest else float("inf")

    # ---- backward ----

    def begin(self, start: Tensor | None) -> None:
        self._rebuilt.clear()
        self._start, self._error = start, None
        self._publish(None)  # whatever happens now, the last pass's verdict is not this one's

    def kept(self, k: int, state: Tensor) -> None:
        """State s[k], kept since the forward pass, is about to be used: it must be what was kept."""
        if self.checks and self.format.exact and not self.poisoned:
            self._kept[k] = ops.checksum(state)
            if self._immediate:
                self._compare_kept([int(self._kept[k])])

    def _compare_kept(self, found: list[int]) -> None:
        for k, value in zip(self._kept, found, strict=True):
            if value != self.forward[k].checksum:
                raise ReconstructionError(
                    f"state {k}, kept for backward, was changed since the forward pass: do not write to saved or returned states", (k - 2) // self.halves
                )
        self._kept.clear()

    def rebuilt(self, k: int, state: Tensor, stats: Tensor) -> None:
        """State s[k] was rebuilt with these statistics."""
        if not self.checks or self.poisoned:
            return
        self._rebuilt[k] = ops.read_stats(stats)[0] if self._immediate else stats
        if self._start is not None and k == 0:
            self._error = (state - self._start).abs().max() / self._start.abs().max() if state.numel() else state.new_zeros(())
        if self._immediate and self.format.exact and self._rebuilt[k].checksum != self.forward[k].checksum:
            self._raise(k)

    def end(self) -> None:
        """Backward is over: compare what was deferred and publish the report."""
        if not self.checks or self.poisoned or not self._rebuilt:
            self._start = None
            return
        if not self._immediate:
            layers = sorted(self._rebuilt, reverse=True)
            sums = (value.expand(4) for value in self._kept.values())  # rows of which the first number counts: one wait for the device, not one each
            read = ops.read_stats(torch.stack([*(self._rebuilt[k] for k in layers), *sums]))
            self._compare_kept([stats.checksum for stats in read[len(layers) :]])
            self._rebuilt = dict(zip(layers, read))
        wrong = [k for k, s in self._rebuilt.items() if s.checksum != self.forward[k].checksum]
        if wrong and self.format.exact:
            self._raise(max(wrong))
        error = 0.0 if not wrong else None if self._error is None else float(self._error)
        total = len(self._rebuilt)
        checksum = combined(self._rebuilt[k].checksum for k in sorted(self._rebuilt))
        self._publish(Report(not wrong and self.format.exact, total, total - len(wrong), error, self.headroom, self.bytes_saved, self.layers_kept, checksum))
        self._rebuilt, self._start, self._error = {}, None, None
        limit = getattr(self.format, "max_error", None)
        if limit is not None and error is not None and not error <= limit:
            warnings.warn(
                f"the rebuilt input is off by {error:.3g} times its largest value after {total} layers in {self.format}: the gradients of this "
                "pass are those of another network. Use FixedPoint(), whose reconstruction is bit-exact, or raise max_error to accept it",
                ReconstructionWarning, stacklevel=2,
            )  # fmt: skip

    def _raise(self, k: int) -> None:
        state = "the input of the stack" if k <= 1 else f"the output of {layer_name(k - 2, self.halves)}"
        raise ReconstructionError(
            f"{layer_name(k, self.halves)}, evaluated again in backward, did not lead back to {state}: checksum {self._rebuilt[k].checksum & (2**64 - 1):016x}, "
            f"expected {self.forward[k].checksum & (2**64 - 1):016x}; {_CAUSES}", k // self.halves,
        )  # fmt: skip
