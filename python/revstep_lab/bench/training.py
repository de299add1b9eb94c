"""Training steps of a language model in a process of its own, under a memory limit: out of memory is an
answer there, and ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from typing import Any

from revstep.errors import RevstepError


@dataclass(frozen=True)
class Model:
    """A GPT and how it is trained. ``scheme``: "plain", "checkpoint" or a reversible one; ``chunked``: the
    loss holds the logits of a few rows at a time.

    ``limit``: bytes for weights, gradients, optimiser and all else beyond what a process has that has
    imported torch and trained a toy (0: none; on CUDA of the allocator).
    """

    layers: int
    width: int
    heads: int
    vocab: int
    length: int
    scheme: str = "plain"
    chunked: bool = True
    dtype: str = "float32"
    device: str = "cpu"
    limit: int = 0


class OutOfMemory(Exception):
    """The process needed more than its limit."""


class Worker:
    """The process. ``with Worker(model, threads) as worker: worker.steps(batch, count)``."""

    def __init__(self, model: Model, threads: int):
        self._said = tempfile.TemporaryFile("w+")  # not a pipe, which would fill
        self._process = subprocess.Popen(
            [sys.executable, "-m", "revstep_lab.bench.training_child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=dict(os.environ),
        )
        self._answer({"model": asdict(model), "threads": threads})

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        # What it was told last is still unwritten where it has ended.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def steps(self, batch: int, count: int, vary: bool = False) -> list[float]:
        """Seconds of each of ``count`` training steps (forward, backward, AdamW); ``vary``: sequences of a
        quarter of the length up to all of it.

        Raises:
            OutOfMemory: the process is over its limit, and over. RevstepError: any other failure, with what
                it said.
        """
        return self._answer({"batch": batch, "steps": count, "vary": vary})["seconds"]

    def _answer(self, job: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended, and has said why
        lines = self._process.stdout.readline()
        if not lines:
            code = self._process.wait()
            self._said.seek(0)
            said = self._said.read().strip().splitlines() or ["nothing"]
            raise RevstepError(f"the training process ended with {code} on {job}; its last words: {said[-1]}")
        answer = json.loads(lines)
        if "out_of_memory" in answer:
            raise OutOfMemory(answer["out_of_memory"])
        return answer
