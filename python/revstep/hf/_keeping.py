"""What a fine-tuning keeps while it goes: a line a step, and checkpoints that are whole or not there."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

from .._files import advice, read_bytes, write_atomic
from .._imports import cause, foreign
from ..errors import ConfigError, RevstepError


class WriteError(RevstepError, RuntimeError):
    """A checkpoint or a line of the log could not be written; says what is there to go on from."""


def what_is_left(out: Path) -> str:
    """The end of the message of a run that could not go on."""
    there = sorted(int(path.name[11:]) for path in out.glob("checkpoint-*") if path.name[11:].isdecimal())
    return (
        f"checkpoint-{there[-1]} is intact: go on from it with --resume"
        if there
        else "there is no earlier checkpoint"
    )


@contextlib.contextmanager
def whole_checkpoints(trainer: Any, out: Path) -> Iterator[None]:
    """Inside, a checkpoint that the Trainer cannot finish is taken away again, and the run ends with a
    sentence.
    """
    write = trainer._save_checkpoint

    def whole(*args: Any, **kwargs: Any) -> Any:
        folder = out / f"checkpoint-{trainer.state.global_step}"

        def refusal(said: str) -> WriteError:
            shutil.rmtree(folder, ignore_errors=True)
            return WriteError(
                f"could not write {folder}: {said}; free some space or choose another --out;"
                f" {what_is_left(out)}"
            )

        with foreign(refusal):
            return write(*args, **kwargs)

    trainer._save_checkpoint = whole
    try:
        yield
    finally:
        del trainer._save_checkpoint


@contextlib.contextmanager
def named_where_it_begins(checkpoint: str | None, steps: Sized) -> Iterator[None]:
    """Around training that goes on from a checkpoint: where it ends before its first step, since optimiser,
    schedule or random states there are damaged, the error names the folder.

    Args:
        checkpoint: None where a run begins.
        steps: what has grown after a step.
    """
    try:
        yield
    except (RevstepError, MemoryError):
        raise
    except Exception as error:
        if checkpoint is None or len(steps):
            raise
        again = "remove the folder, and go on from the checkpoint before it"
        raise ConfigError(f"cannot go on from {checkpoint}: {cause(error)}; {again}") from error


class Log:
    """``log.jsonl``: one object a step.

    Raises:
        WriteError: it cannot be written.
    """

    def __init__(self, out: Path):
        self.path = out / "log.jsonl"

    def begin(self, step: int, resumed: bool) -> None:
        """Of a run that goes on, the lines up to ``step`` stay; what a crash cut off does not."""
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = read_bytes(self.path) if resumed and self.path.exists() else b""
            write_atomic(
                self.path, b"".join(line for line in before.splitlines(keepends=True) if _step(line) <= step)
            )

    def add(self, entry: dict[str, Any]) -> None:
        with self._explained(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(
                f"could not write {self.path}: {error.strerror}; {advice(error)};"
                f" {what_is_left(self.path.parent)}"
            ) from error


def _step(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return math.inf
