"""Processes of one gloo group that tests send functions to. Started once, used by many tests."""

from __future__ import annotations

import contextlib
import datetime
import io
import multiprocessing
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

#: A collective that one rank does not join fails after this long.
TIMEOUT = datetime.timedelta(seconds=60)


class RankError(AssertionError):
    """A function raised on some rank; carries the tracebacks of all that did."""


class Ranks:
    """``ranks(function, *args)`` calls ``function(rank, *args)`` on every rank at once and returns the list
    of results.

    ``function`` is a module-level function of a test module; arguments and results are anything
    ``torch.save`` can write. Each call starts from a fixed seed on one thread. Ranks that failed, or hang,
    are replaced before the next call.
    """

    def __init__(self, size: int = 2):
        self.size = size
        self._processes: list[Any] = []
        self._pipes: list[Any] = []
        self._store = ""

    def __call__(self, function: Callable, *args: Any) -> list[Any]:
        if not self._processes:
            self._start()
        for pipe in self._pipes:
            pipe.send_bytes(_dump((function.__module__, function.__qualname__, args)))
        answers = [self._answer(rank) for rank in range(self.size)]
        wrong = [f"rank {rank}:\n{value}" for rank, (ok, value) in enumerate(answers) if not ok]
        if wrong:
            self.close()
            raise RankError("\n".join(wrong))
        return [value for _, value in answers]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._processes, self._pipes = [], []
        if self._store:
            Path(self._store).unlink(missing_ok=True)

    def _answer(self, rank: int) -> tuple[bool, Any]:
        limit = 4 * TIMEOUT.total_seconds()
        if not self._pipes[rank].poll(limit):
            return False, f"no answer within {limit:.0f} s"
        try:
            return torch.load(io.BytesIO(self._pipes[rank].recv_bytes()), weights_only=False)
        except EOFError:
            return False, "the process has ended"

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        handle, self._store = tempfile.mkstemp(prefix="revstep-store-")
        os.close(handle)
        os.unlink(self._store)  # gloo makes it; what is there already would be taken for another group's
        for rank in range(self.size):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, self.size, self._store, there, list(sys.path)), daemon=True
            )
            process.start()
            there.close()
            self._processes.append(process)
            self._pipes.append(here)


def _dump(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _serve(rank: int, size: int, store: str, pipe: Any, path: list[str]) -> None:
    sys.path[:] = path
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=TIMEOUT
    )
    while True:
        try:
            module, name, args = torch.load(io.BytesIO(pipe.recv_bytes()), weights_only=False)
        except EOFError:  # the tests are over
            return
        try:
            torch.manual_seed(0)
            function = __import__(module, fromlist=[name])
            for part in name.split("."):
                function = getattr(function, part)
            answer = True, function(rank, *args)
            content = _dump(answer)
        except BaseException:
            content = _dump((False, traceback.format_exc()))
        with contextlib.suppress(BrokenPipeError):
            pipe.send_bytes(content)
