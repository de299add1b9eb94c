"""The check on every backward pass: each rebuilt state against the checksum of the state the forward pass
computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._recurrence.walk import Ledger
from ..errors import NonDeterministicBlockError, ReconstructionError, ReconstructionWarning
from ..schemes._base import Coefficients, RowCoefficients
from ..state import StateFormat
from ..state._places import Layer, Place, StackInput, overflow
from ._report import Report, combined, layer_name

_CAUSES = (
    "likely causes: the block is random or keeps hidden state outside torch's generators, its weights or"
    " inputs changed between forward and backward, another kernel was chosen (SDPA backend, matmul precision,"
    " autotuning; a block compiled by hand whose float attributes differ by layer: stack.compile), or a"
    " kernel is not deterministic. `revstep.verify.reconstruction` finds which;"
    " torch.use_deterministic_algorithms(True) or a deterministic block mends it"
)
#: In place of a saved tensor's number, below those of auxiliary tensors: copies of a step, its view.
_COPIES, _VIEW = -1000, -2000


class Audit:
    """Collects kernel statistics: range in the forward pass, checksums in the backward pass.

    On the CPU each number is looked at as it comes, so that an error names its layer at once. On other
    devices the forward statistics are read once at the end of the pass, and the comparisons once at the end
    of backward.
    """

    def __init__(
        self,
        fmt: StateFormat,
        halves: int,
        checks: bool | str,
        immediate: bool,
        publish: Callable[[Report | None], None],
    ):
        self.format = fmt
        self.halves = halves
        self.checks = checks
        self._immediate = immediate
        self._publish = publish
        self._ledger = Ledger()
        self.forward: list[ops.Stats] = []  # of s[0], s[1], ..., as far as taped
        self.poisoned = False
        self.shape: Sequence[int] = ()  # of every state, and the coefficients of every step, for messages
        self.coefficients: Sequence[Coefficients | RowCoefficients] = ()
        self.trains = False
        self.bytes_saved = self.layers_kept = 0
        # of blocks, beside what autograd saves; None where it was not measured
        self.bytes_outside: int | None = None
        self._last: dict[int, Tensor] = {}
        # step, saved tensor (below zero: auxiliary tensor, view), two numbers of a device
        self._later: list[tuple[int, int, Any, Any]] = []
        self._rebuilt: dict[int, Tensor | ops.Stats] = {}
        self._start: Tensor | None = None
        self._error: Tensor | None = None

    # ---- forward ----

    def wrote(self, stats: Tensor) -> None:
        """Statistics of the next state, in order from s[0]."""
        if self._immediate:
            self._saw(self._ledger.look(stats))
        else:
            self._ledger.later(None, stats)

    def read(self) -> None:
        """Look at what has come in. Raises StateOverflowError for formats that raise."""
        for _, stats in self._ledger.read():
            self._saw(stats)

    def _saw(self, stats: ops.Stats) -> None:
        if stats.bad and self.format.exact:
            if self.format.on_nonfinite == "raise":
                raise overflow(stats, self.format, self._place(len(self.forward)), self.shape)
            self.poisoned = True
        self.forward.append(stats)

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
        return self._ledger.headroom(self.format.limit)

    # ---- backward ----

    def begin(self, start: Tensor | None) -> None:
        self._rebuilt.clear()
        self._later.clear()
        self._start = start
        self._error = None
        self._publish(None)  # whatever happens now, the last pass's verdict is not this one's

    def unchanged(self, k: int, state: Tensor) -> None:
        """State s[k], kept since the forward pass, is about to be used: it must be what was kept."""
        if self.checks and self.format.exact and not self.poisoned:
            self._last[k] = ops.checksum(state)
            if self._immediate:
                self._compare_last([int(self._last[k])])

    def still(self, k: int, state: Tensor) -> None:
        """State s[k], rebuilt earlier in this backward pass, is about to be used
        again: it must be what was rebuilt.
        """
        if self.checks and self.format.exact and not self.poisoned and k < len(self.forward):
            found = ops.checksum(state)
            if found.device.type == "cpu" and int(found) != self.forward[k].checksum:
                text = "rebuilt in this backward pass, was changed since: do not write to it"
                raise ReconstructionError(f"{self._state(k)}, {text}", self._below(k))

    def same_copies(self, name: str, step: int, before: list, now: list) -> None:
        """Fingerprints of what is kept of a step: generator records, choices of rows, operators' outputs."""
        for a, b in zip(before, now):
            if isinstance(a, Tensor):
                self.compare_later(step, _COPIES, a, b)
            elif a != b:
                raise ReconstructionError(
                    f"{name}: what is kept of it for backward (the state of a random generator, a buffer, "
                    "the choice of a sample's coefficients, an operator's output) was changed since the "
                    "forward pass: memory was written to", step // self.halves,
                )  # fmt: skip

    def guard(self, step: int, c: Coefficients | RowCoefficients) -> Callable[[], None] | None:
        """A look at the choice of rows, for the step's backward, which precedes the block's re-evaluation.

        None where rows have no choice, or nothing is checked.
        """
        if isinstance(c, Coefficients) or not self.checks:
            return None
        before = ops.fingerprint(c.choice)
        name = layer_name(step, self.halves)
        return lambda: self.same_copies(name, step, [before], [ops.fingerprint(c.choice)])

    def read_view(self, k: int, state: Tensor, view: Tensor) -> None:
        """The float view of s[k] that a block was evaluated at, before it is let go."""
        if self.poisoned:
            return
        found = ops.differs(state, view, self.format.frac_bits)
        if isinstance(found, Tensor):
            self._later.append((k - 1, _VIEW, found, torch.zeros_like(found)))
        elif found:
            raise self._changed_view(k - 1, found)

    def _changed_view(self, step: int, found: int) -> ReconstructionError:
        return ReconstructionError(
            f"{layer_name(step, self.halves)}: {found} value(s) of its input were changed between its "
            "re-evaluation and the end of its backward pass: the block, a hook or something else wrote to a "
            "rebuilt state",
            step // self.halves,
        )  # fmt: skip

    def compare_later(self, step: int, index: int, before: Any, now: Any) -> None:
        """Two fingerprints that a device still computes: saved tensor ``index`` of a
        step (-1 - i: auxiliary tensor i).
        """
        for a, b in zip(before, now) if isinstance(before, tuple) else ((before, now),):
            self._later.append((step, index, a, b))

    def _compare_later(self) -> None:
        if not self._later or self.poisoned:
            return
        pairs, self._later = self._later, []
        for device in {a.device for *_, a, _ in pairs}:
            here = [p for p in pairs if p[2].device == device]
            both = torch.stack([torch.stack([p[2] for p in here]), torch.stack([p[3] for p in here])])
            for (step, index, *_), a, b in zip(here, *both.tolist()):
                if a != b:
                    raise self._later_error(step, index, a)

    def _later_error(self, step: int, index: int, found: int) -> ReconstructionError:
        name = layer_name(step, self.halves)
        if index == _VIEW:
            return self._changed_view(step, found)
        if index == _COPIES:
            what = "what is kept of it for backward"
        else:
            what = f"saved tensor {index}" if index >= 0 else f"auxiliary tensor {-1 - index}"
        text = f"{name}, evaluated again in backward: {what} has other values than in the forward pass"
        return NonDeterministicBlockError(f"{text}; {_CAUSES}", step // self.halves)

    def _compare_last(self, found: list[int]) -> None:
        for k, value in zip(self._last, found, strict=True):
            if value != self.forward[k].checksum:
                text = "was changed since the forward pass: do not write to saved or returned states"
                raise ReconstructionError(f"{self._state(k)}, kept for backward, {text}", self._below(k))
        self._last.clear()

    def rebuilt(self, k: int, state: Tensor, stats: Tensor) -> None:
        """State s[k] was rebuilt with these statistics."""
        if not self.checks or self.poisoned:
            return
        self._rebuilt[k] = ops.read_stats(stats)[0] if self._immediate else stats
        if self._start is not None and k == 0:
            self._error = (
                (state - self._start).abs().max() / self._start.abs().max()
                if state.numel()
                else state.new_zeros(())
            )
        if self._immediate and self.format.exact and self._rebuilt[k].checksum != self.forward[k].checksum:
            self._raise(k)

    def settle(self) -> list[int]:
        """Compare the checksums that were deferred.

        Returns the states that differ, for formats whose states may.

        Raises:
            ReconstructionError: a kept state is not what it was, or a rebuilt one of an exact format.
        """
        if not self.checks or self.poisoned:
            return []
        if not self._immediate and (self._rebuilt or self._last):
            deferred = (k for k, value in self._rebuilt.items() if isinstance(value, Tensor))
            states = sorted(deferred, reverse=True)
            # Rows of which the first number counts: one wait for the device, not one each.
            sums = (value.expand(4) for value in self._last.values())
            rows = [*(self._rebuilt[k] for k in states), *sums]
            read = ops.read_stats(torch.stack(rows)) if rows else []
            self._compare_last([stats.checksum for stats in read[len(states) :]])
            self._rebuilt.update(zip(states, read))
        wrong = [k for k, s in self._rebuilt.items() if s.checksum != self.forward[k].checksum]
        if wrong and self.format.exact:
            self._raise(max(wrong))
        return wrong

    def end(self) -> None:
        """Backward is over: compare what was deferred and publish the report."""
        if not self.checks or self.poisoned or not self._rebuilt:
            self._start = None
            self._later.clear()
            return
        wrong = self.settle()
        self._compare_later()
        error = 0.0 if not wrong else None if self._error is None else float(self._error)
        total = len(self._rebuilt)
        checksum = combined(self._rebuilt[k].checksum for k in sorted(self._rebuilt))
        self._publish(
            Report(
                not wrong and self.format.exact,
                total,
                total - len(wrong),
                error,
                self.headroom,
                self.bytes_saved,
                self.layers_kept,
                checksum,
                self.bytes_outside,
            )
        )
        self._rebuilt = {}
        self._start = None
        self._error = None
        limit = getattr(self.format, "max_error", None)
        if limit is not None and error is not None and not error <= limit:
            warnings.warn(
                f"the rebuilt input is off by {error:.3g} times its largest value after {total} layers in"
                f" {self.format}: the gradients of this pass are those of another network. Use FixedPoint(),"
                " whose reconstruction is bit-exact, or raise max_error to accept it",
                ReconstructionWarning,
                stacklevel=2,
            )

    def _state(self, k: int) -> str:
        what = "the input" if k <= 1 else "the output"
        return f"state {k}, {what} of {layer_name(max(k - 2, 0), self.halves)}"

    def _below(self, k: int) -> int:
        """The layer that state k comes out of; of the stack's input the first one."""
        return max(k - 2, 0) // self.halves

    def _raise(self, k: int) -> None:
        state = "the input of the stack" if k <= 1 else f"the output of {layer_name(k - 2, self.halves)}"
        raise ReconstructionError(
            f"{layer_name(k, self.halves)}, evaluated again in backward, did not lead back to {state}:"
            f" checksum {self._rebuilt[k].checksum & (2**64 - 1):016x}, expected"
            f" {self.forward[k].checksum & (2**64 - 1):016x}; {_CAUSES}",
            k // self.halves,
        )
