"""What a run shows and keeps while it goes: a JSON line per step, a progress bar, peak memory, and a civil end on Ctrl-C."""

from __future__ import annotations

import json
import math
import signal
import sys
import threading
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

from ..extras import require
from .files import write_atomic


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far: of torch's allocator on a CUDA device, else of the whole process (0 where the system does not say)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class StepLog:
    """``log.jsonl`` in the run folder: one object per step. On resuming, lines of steps after the checkpoint are removed."""

    def __init__(self, folder: Path | None, first_step: int):
        self._file = None
        if folder is None:
            return
        path = folder / "log.jsonl"
        if path.exists():
            write_atomic(path, b"".join(line for line in path.read_bytes().splitlines(keepends=True) if _step_of(line) < first_step))
        self._file = path.open("a", encoding="utf-8")

    def write(self, entry: dict[str, Any]) -> None:
        """One line; NaN and infinity, which JSON has not, become null."""
        if self._file is not None:
            clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in entry.items()}
            self._file.write(json.dumps(clean) + "\n")
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


def _step_of(line: bytes) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line cut off by a crash belongs to a step that is done again


class Progress:
    """A tqdm bar over all steps of the run, or nothing; also nothing where stderr is no terminal."""

    def __init__(self, shown: bool, total: int, done: int):
        self._bar = (
            require("tqdm", "the progress bar (or turn it off)").tqdm(total=total, initial=done, unit="step", dynamic_ncols=True, disable=None)
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
    """Within it the first SIGINT sets ``requested`` and the second raises KeyboardInterrupt; outside the main thread, nothing."""

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None
        self._installed = False

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._handle)
            self._installed = True
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._installed:
            # None: a handler that was not installed from Python, which Python cannot put back
            signal.signal(signal.SIGINT, signal.default_int_handler if self._before is None else self._before)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("\ninterrupt: finishing this step and writing a checkpoint (press again to stop at once)", file=sys.stderr)
