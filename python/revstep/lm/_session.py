"""What a training run gives back and shows: its result, the error of a loss that is no longer a number, and
while it goes a JSON line per step, a progress bar, peak memory and a civil end on a signal.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import nn

from .._files import advice, write_atomic
from .._imports import require
from ..errors import RevstepError
from ._checkpoint import what_is_left
from ._config import TrainConfig

# ------------------------------------------------------------------------------------------------------------
# What a training run returns, or raises where its loss is no longer a number.


class DivergedError(RevstepError, ArithmeticError):
    """The loss or its gradient is NaN or infinite: going on would only spoil the weights. They are as they
    were before that step.
    """


@dataclass
class Result:
    """What ``train`` returns.

    Attributes:
        config: the run.
        step: optimiser steps done in all.
        signal: that which stopped the run (SIGINT, SIGTERM; a checkpoint was written), 0 for none.
        losses: training loss of each step of this call.
        first_step: the step before the first of them.
        skipped: how many of them were not used.
        val_losses: (steps done, validation loss) of this call.
        tokens_per_second: training tokens over training time of this call, the first step left out (it warms
            up).
        peak_memory: bytes: of torch's allocator on a GPU, else of the whole process so far; 0 where the
            system does not say.
        exact: every backward of this call rebuilt its states bit for bit; None for a trunk that rebuilds
            nothing.
        max_error: largest reconstruction error reported (0.0 when exact or where nothing is rebuilt, None
            when a trunk did not measure it).
        reconstruction: the last report as text ("exact (12 states)", "stored", "recomputed").
        model: as trained, on the run's device.
        tokenizer: of the run.
        rank: of this process among those of the run; all get the same but for the model, of which each has
            its part where it is sharded.
        checkpoint: folder of the last checkpoint, or None without ``out``.
    """

    config: TrainConfig
    step: int
    first_step: int
    signal: int = 0
    skipped: int = 0
    losses: list[float] = field(default_factory=list)
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens_per_second: float = 0.0
    peak_memory: int = 0
    exact: bool | None = None
    max_error: float | None = 0.0
    reconstruction: str = ""
    model: nn.Module | None = None
    tokenizer: Any = None
    rank: int = 0
    checkpoint: Path | None = None

    @property
    def interrupted(self) -> bool:
        """A signal stopped the run before its last step."""
        return self.signal != 0


# ------------------------------------------------------------------------------------------------------------
# What a run shows and keeps while it goes: a JSON line per step, a progress bar, peak memory, and a civil end
# on Ctrl-C or SIGTERM.


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far: of torch's allocator on a CUDA device, else of the whole process (0 where the system
    does not say).
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class LogError(RevstepError, RuntimeError):
    """``log.jsonl`` could not be written; says what is there to go on from."""


class StepLog:
    """``log.jsonl`` in the run folder: one object per step. On resuming, lines of steps after the checkpoint
    are removed.

    A line is there whole, or not at all where the process lives to take its beginning back; what a kill cut
    off is removed on resuming.

    Raises:
        LogError: it cannot be written (disk full, no permission).
    """

    def __init__(self, folder: Path | None, first_step: int):
        self._file = None
        if folder is None:
            return
        self._path = folder / "log.jsonl"
        with self._explained():
            _cut(self._path, first_step)
            self._file = self._path.open("ab", buffering=0)  # unbuffered: nothing is left to fail in close

    def write(self, entry: dict[str, Any]) -> None:
        """One line; NaN and infinity, which JSON has not, become null."""
        if self._file is None:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
        line = (json.dumps(clean) + "\n").encode()
        whole = self._file.tell()
        with self._explained():
            try:
                while line:
                    line = line[self._file.write(line) :]
            except OSError:
                with contextlib.suppress(OSError):
                    self._file.truncate(whole)
                raise

    def flush(self) -> None:
        """Wait until the disk has it: before a checkpoint is written, whose steps are not done again."""
        if self._file is not None:
            with self._explained():
                os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LogError(
                f"could not write {self._path}: {error}; {advice(error)}. {what_is_left(self._path.parent)}"
            ) from error


def _cut(path: Path, first_step: int) -> None:
    """Remove what belongs to ``first_step`` and later: as a rule the end of the file, which takes no space to
    remove.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    earlier = b"".join(line for line in content.splitlines(keepends=True) if _step_of(line) < first_step)
    if earlier == content[: len(earlier)]:
        os.truncate(path, len(earlier))
    else:
        write_atomic(path, earlier)


def _step_of(line: bytes) -> float:
    if not line.endswith(b"\n"):
        return math.inf
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut off by a crash belongs to a step that is done again


class Progress:
    """A tqdm bar over all steps of the run, or nothing; also nothing where stderr is no terminal."""

    def __init__(self, shown: bool, total: int, done: int):
        self._bar = (
            require("tqdm", "the progress bar (or turn it off)").tqdm(
                total=total, initial=done, unit="step", dynamic_ncols=True, disable=None
            )
            if shown
            else None
        )

    def step(self, entry: dict[str, Any]) -> None:
        if self._bar is not None:
            parts = [
                f"loss {entry['loss']:.3f}",
                f"{entry['tokens_per_second']:,.0f} tokens/s",
                f"{entry['peak_memory'] / 1e6:,.0f} MB",
                entry["reconstruction"],
            ]
            self._bar.set_postfix_str(", ".join(parts), refresh=False)
            self._bar.update()

    def say(self, text: str) -> None:
        if self._bar is not None:
            self._bar.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Interrupt:
    """Within it the first SIGINT or SIGTERM asks for an end after this step; outside the main thread,
    nothing.

    A second SIGINT raises KeyboardInterrupt. A second SIGTERM changes nothing: schedulers and launchers
    repeat it, and mean the same; where ``repeated``, as under torchrun, that holds of SIGINT too.

    Attributes:
        signal: the first that came, 0 while there is none.
    """

    def __init__(self, repeated: bool = False) -> None:
        self.signal = 0
        self._repeated = repeated
        self._before: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        return self.signal != 0

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            # None: a handler that was not installed from Python, which Python cannot put back
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, default if before is None else before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.signal:
            if number == signal.SIGINT and not self._repeated:
                raise KeyboardInterrupt
            return
        self.signal = number
        again = " (press again to stop at once)" if number == signal.SIGINT and not self._repeated else ""
        print(
            f"\n{signal.Signals(number).name}: finishing this step and writing a checkpoint{again}",
            file=sys.stderr,
        )
