"""A training run that is killed again and again. Each life is a process forked from a server that has torch
loaded: a tenth of a second, not four.

``Killer().train(config, plan)`` starts or resumes the run in a new process and has it killed by SIGKILL as
``plan`` says, at the latest when it has done ``REACH`` steps: a run is not over before its last life.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from revstep import lm

#: Steps after which a life ends at the latest.
REACH = 5
#: What a life needs besides its target; loaded once, in the server.
LOADED = [
    "revstep.lm._trainer",
    "revstep.lm._architectures",
    "revstep.stack",
    "safetensors.torch",
    "tokenizers",
    "torch._dynamo",
    "pytest",
]


@dataclass(frozen=True)
class Plan:
    """When a life ends.

    Attributes:
        by: "step": after step ``at`` of this life; "call": at the ``at``-th call of a Python or C function;
            "file": at the ``at``-th operation on files in the run folder (a file being flushed first loses
            half of what came since it was flushed last, as when the power fails); "clock": ``at`` seconds
            after its first step, from outside; "never".
    """

    by: str
    at: float = 0

    def arm(self, folder: str) -> None:
        """Have this process killed as planned."""
        if self.by == "call":
            _arm_calls(int(self.at))
        if self.by == "file":
            _arm_files(int(self.at), folder)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Killer:
    """Starts lives, one after the other."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(LOADED)

    def train(self, config: lm.TrainConfig, plan: Plan, mutant: Callable[[], None] | None = None) -> int:
        """A life of the run in ``config.out``, with what ``mutant`` breaks: -> exit code, ``-signal.SIGKILL``
        or 0 where the run came to its end.
        """
        here, there = self._context.Pipe()

        def stab(process: Any) -> None:
            here.recv()  # the first step is done
            time.sleep(plan.at)
            process.kill()

        try:
            return self.call(
                _train, config, plan, mutant, there, meanwhile=stab if plan.by == "clock" else None
            )
        finally:
            here.close()
            there.close()

    def call(
        self, function: Callable, *arguments: Any, meanwhile: Callable[[Any], None] | None = None
    ) -> int:
        """``function(*arguments)``, of a module, in a process of its own: -> exit code."""
        process = self._context.Process(target=_call, args=(function, arguments))
        process.start()
        try:
            if meanwhile is not None:
                meanwhile(process)
            process.join(60)
            if process.is_alive():
                raise AssertionError(f"{function.__name__}{arguments}: still alive after 60 s")
            return process.exitcode
        finally:
            process.kill()
            process.join()


def _call(function: Callable, arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(os.getpid())  # a new process shares no random state with the one before
    function(*arguments)


def _train(config: lm.TrainConfig, plan: Plan, mutant: Callable[[], None] | None, pipe: Any) -> None:
    if mutant is not None:
        mutant()
    done = 0

    def on_step(entry: dict[str, Any]) -> None:
        nonlocal done
        done += 1
        if plan.by == "clock" and done == 1:
            pipe.send(None)
        if plan.by == "step" and done == plan.at:
            die()
        if plan.by != "never" and done == REACH:
            if plan.by == "clock":
                time.sleep(60)  # until the kill comes
            die()

    plan.arm(config.out)
    lm.train(config, resume="auto", on_step=on_step)


def _arm_calls(at: int) -> None:
    left = at

    def count(frame: Any, event: str, arg: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            die()

    sys.setprofile(count)


def _arm_files(at: int, folder: str) -> None:
    left, flush = at, os.fsync
    flushed = {path.stat().st_ino: path.stat().st_size for path in Path(folder).rglob("*")}

    def reached() -> bool:
        nonlocal left
        left -= 1
        return left == 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}:
            return
        # A name relative to an open folder: shutil.rmtree's way.
        within = event in {"os.remove", "os.rmdir"} and arguments[-1] != -1
        if (within or str(arguments[0]).startswith(folder)) and reached():
            die()

    def fsync(handle: int) -> None:
        now = os.fstat(handle)
        if reached():
            if stat.S_ISREG(now.st_mode):
                os.ftruncate(handle, (min(flushed.get(now.st_ino, 0), now.st_size) + now.st_size) // 2)
            die()
        flush(handle)
        flushed[now.st_ino] = now.st_size

    os.fsync = fsync
    sys.addaudithook(count)
