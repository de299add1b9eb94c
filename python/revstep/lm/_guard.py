"""What each step of a run measured, joined over its processes for the log, and the guard that judges it: no
step that is not finite reaches the weights, and a run whose states near the end of their range stops in time.
"""

from __future__ import annotations

import math
import struct
import warnings
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .._models.training import Tally, worst
from ..errors import RevstepError, StateOverflowError
from ..stack._report import Report
from ..state import FixedPoint, StateFormat
from ._config import TrainConfig
from ._session import DivergedError

# ------------------------------------------------------------------------------------------------------------
# What the processes of a run measured in one step, and what becomes of it in the log.

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
        error, exact = (
            math.nan if self.max_error is None else self.max_error,
            -1 if self.exact is None else self.exact,
        )
        return _PACKED.pack(
            self.loss,
            error,
            self.headroom,
            self.peak_memory,
            self.checksum or 0,
            exact,
            self.checksum is not None,
        )


def joined(parts: Iterable[bytes]) -> dict[str, Any]:
    """The log's fields, of what each process packed, by rank: the mean loss, the worst of the rest, and of
    checksums all, in hexadecimal digits.
    """
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
        "checksums": (
            [f"{c:016x}" if there else None for c, there in zip(checksums, summed)] if any(summed) else None
        ),
    }


# ------------------------------------------------------------------------------------------------------------
# What keeps a run from spoiling itself: a step that is not finite never reaches the weights, and states that
# near the end of their range end it in time.

#: Steps over which the growth of the states is measured, at most and at least: the mean over the second half
#: against that over the first, so that single batches weigh little.
WINDOW, ENOUGH = 64, 16


class HeadroomError(RevstepError, ArithmeticError):
    """The states have come near the end of their format's range: the run has stopped before one left it.
    Raised when its checkpoint is written.

    Attributes:
        headroom: range of the format over the largest state value of the last step.
        state: the next format as ``--state`` takes it, e.g. "fixed32:18"; "" where there is none.
    """

    def __init__(self, message: str, headroom: float, state: str):
        super().__init__(message)
        self.headroom = headroom
        self.state = state


class Guard:
    """Judges each step by ``config.on_bad_step``, ``max_bad_steps`` and ``min_headroom``.

    What it is told must be the same on every process of a run: the loss of the whole batch, the norm of the
    whole gradient, the least headroom.

    Args:
        tells: warn of steps that are skipped and of a range that nears its end: one process of a run does.

    Attributes:
        skipped: steps dropped so far; in_a_row: those of them just before the next step.
    """

    def __init__(self, config: TrainConfig, state: StateFormat, tells: bool = True):
        self.config = config
        self.state = state
        self.tells = tells
        self.skipped = self.in_a_row = 0
        self._logs: deque[float] = deque(maxlen=WINDOW)
        self._warned = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "logs": list(self._logs),
            "state": self.config.state,
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The inverse of ``state_dict``. The growth of the states is forgotten where their format is another
        one.
        """
        self.skipped, self.in_a_row = saved["skipped"], saved["in_a_row"]
        self._logs = deque(saved["logs"] if saved["state"] == self.config.state else (), maxlen=WINDOW)

    # ---- steps that are not finite ----

    def fault(self, step: int, loss: float, norm: float) -> str:
        """What is wrong with step ``step``, "" if nothing is."""
        return next(
            (
                f"the {name} of step {step} is {value}"
                for name, value in (("loss", loss), ("gradient norm", norm))
                if not math.isfinite(value)
            ),
            "",
        )

    def passed(self) -> None:
        """A step went well."""
        self.in_a_row = 0

    def drop(self, step: int, fault: str, left: str, cause: StateOverflowError | None = None) -> None:
        """Step ``step`` is bad: count it, or end the run. ``left``: the sentence on what there is to go on
        from.

        Raises:
            DivergedError: the run is to stop at a bad step, or there were too many in a row.
                StateOverflowError: the same, where a state left its range.
        """
        ways = ["a lower --lr"]
        if self.config.on_bad_step == "skip":
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            if self.in_a_row < self.config.max_bad_steps:
                if self.tells:
                    warnings.warn(f"step {step} was skipped: {fault}", UserWarning, stacklevel=4)
                return
            fault = f"{fault}, and {self.in_a_row} steps in a row were skipped"
        else:
            done = (
                "weights whose gradient was finite were stepped"
                if self.config.fused_step
                else "that step was not done"
            )
            fault = f"{fault}; {done}"
            if not self.config.fused_step:
                ways.insert(0, "--on-bad-step skip")
        if cause is not None and isinstance(cause.advised, FixedPoint):
            ways.insert(0, f"--state {cause.advised.spec}")
        message = f"{fault}. {left}. To get past it: {' or '.join(ways)}"
        if cause is not None:
            raise cause.again(message) from cause
        raise DivergedError(message)

    # ---- states that near the end of their range ----

    def seen(self, headroom: float) -> int | None:
        """Take note of a step's headroom -> steps until the run would stop, at the growth of the last
        ``WINDOW`` steps; None: no growth, or too few steps.
        """
        if not math.isfinite(headroom):  # float states, or nothing that was rebuilt
            return None
        self._logs.append(math.log(headroom))
        logs = list(self._logs)
        half = len(self._logs) // 2
        if len(logs) < ENOUGH:
            return None
        # Of the logarithm of the largest value, per step.
        growth = (math.fsum(logs[:half]) - math.fsum(logs[-half:])) / (half * (len(logs) - half))
        if growth <= 0.0:
            return None
        return max(0, math.ceil((logs[-1] - math.log(max(self.config.min_headroom, 1.0))) / growth))

    def near(self, headroom: float, steps_left: int | None) -> bool:
        """Whether the run must stop here; warns once at twice that distance."""
        least = self.config.min_headroom
        if not headroom < 2 * least:  # also NaN, of a step that was skipped
            return False
        if headroom < least:
            return True
        if self.tells and not self._warned:
            self._warned = True
            soon = f", in about {steps_left} steps at the present growth" if steps_left is not None else ""
            warnings.warn(
                f"{self._distance(headroom)}; the run stops at {least:g}{soon}. {self._advice(headroom)[1]}",
                UserWarning,
                stacklevel=4,
            )
        return False

    def stop(self, step: int, headroom: float, saved: bool) -> HeadroomError:
        """The error that ends the run after step ``step``."""
        spec, advice = self._advice(headroom)
        written = (
            "The checkpoint of this step is written"
            if saved
            else "Nothing is kept, for want of an out folder"
        )
        return HeadroomError(
            f"stopped after step {step}: {self._distance(headroom)}, less than min_headroom"
            f" {self.config.min_headroom:g}. {written}. {advice}",
            headroom,
            spec,
        )

    def _distance(self, headroom: float) -> str:
        limit = self.state.limit
        return (
            f"the largest state value is {limit / headroom:.6g} and {self.state} holds +-{limit:.6g}"
            f" (headroom {headroom:.3g})"
        )

    def _advice(self, headroom: float) -> tuple[str, str]:
        wider = self.state.wider(self.state.limit / headroom)
        if wider is None:
            return "", "No fixed-point format holds much more: lower --lr or raise --weight-decay"
        return (
            wider.spec,
            (
                f"Go on with --resume --state {wider.spec}, which holds +-{wider.limit:.6g} on a grid of"
                f" {wider.grid:.2g}"
            ),
        )
