"""Training steps of a language model in a process of its own, under a memory limit: out of memory is an
answer there, and ends the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from revstep.errors import RevstepError
from revstep.lm._architectures import GPTConfig, LanguageModel, make_model


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
            [sys.executable, "-m", "revstep_lab.bench.training"],
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


# ------------------------------------------------------------------------------------------------------------
# The process behind :class:`Worker`: jobs as lines of JSON on stdin, one answer a line. It is ``python -m
# revstep_lab.bench.training``.

#: How torch's CPU allocator, C++, and oneDNN, which gives no reason, say that there is no memory left.
_SAYS = ("can't allocate memory", "bad_alloc", "out of memory", "could not create a primitive")


def is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and any(said in str(error) for said in _SAYS)
    )


def make(model: Model) -> tuple[LanguageModel, torch.optim.Optimizer]:
    config = GPTConfig(
        model.vocab,
        model.length,
        model.layers,
        model.width,
        model.heads,
        loss_chunk="auto" if model.chunked else 0,
    )
    made = make_model(config, model.scheme).to(model.device)
    return made, torch.optim.AdamW(made.parameters(), lr=1e-4)


def train(
    made: LanguageModel, optimizer: torch.optim.Optimizer, model: Model, batch: int, length: int
) -> float:
    """One training step on random tokens; returns its seconds."""
    synchronise = torch.cuda.synchronize if model.device == "cuda" else lambda: None
    tokens = torch.randint(model.vocab, (batch, length + 1), device=model.device)
    synchronise()
    start = time.perf_counter()
    autocast = (
        torch.autocast(model.device, torch.bfloat16)
        if model.dtype == "bfloat16"
        else contextlib.nullcontext()
    )
    with autocast:
        loss = made(tokens[:, :-1], tokens[:, 1:])
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    synchronise()
    return time.perf_counter() - start


def confine(model: Model) -> None:
    """Put the limit in force. On the CPU of RLIMIT_DATA: private writable memory, large blocks that malloc
    maps included.
    """
    if not model.limit:
        return
    if model.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(
            min(1.0, model.limit / torch.cuda.get_device_properties(0).total_memory)
        )
        return
    used = 1024 * int(re.search(r"^VmData:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)[1])
    resource.setrlimit(resource.RLIMIT_DATA, (used + model.limit, resource.RLIM_INFINITY))


def main() -> None:
    job = json.loads(sys.stdin.readline())
    torch.set_num_threads(job["threads"])
    model = Model(**job["model"])
    toy = Model(2, 16, 2, 32, 8, model.scheme, model.chunked, model.dtype, model.device)
    train(*make(toy), toy, 2, 8)  # threads, libraries and their buffers are there before the limit is
    confine(model)
    lengths = random.Random(0)
    try:
        made, optimizer = make(model)
        print(json.dumps({"parameters": sum(p.numel() for p in made.parameters())}), flush=True)
        for line in sys.stdin:
            job, low = json.loads(line), max(1, model.length // 4)
            found = [
                train(
                    made,
                    optimizer,
                    model,
                    job["batch"],
                    lengths.randint(low, model.length) if job["vary"] and step else model.length,
                )
                for step in range(job["steps"])
            ]
            print(json.dumps({"seconds": found}), flush=True)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print(json.dumps({"out_of_memory": str(error).splitlines()[0]}), flush=True)


if __name__ == "__main__":
    main()
