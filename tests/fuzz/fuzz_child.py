"""One command line in a forked child: its exit code and what it said, with limits on memory, sizes of files
and time. A fork is a hundred times cheaper than a new interpreter that imports torch.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

#: Memory that a command may take above what the forked process has.
MEMORY = 2 << 30
#: Bytes of the largest file that it may write.
FILE = 32 << 20
#: Seconds after which it is interrupted, and more of them until it is killed.
PATIENCE, GRACE = 6.0, 25.0


@dataclass(frozen=True)
class Limits:
    """Of one command.

    Attributes:
        file: bytes of the largest file it may write: above, a write fails as on a full disk.
        encoding: of stdout and stderr.
        stdout: what stdout is; "": what it says is kept.
        patience: seconds until it is interrupted.
    """

    file: int = FILE
    encoding: str = "utf-8"
    stdout: str = ""
    patience: float = PATIENCE


@dataclass(frozen=True)
class Outcome:
    """What came of a command.

    Attributes:
        code: as a shell has it; negative: killed by that signal.
        out, err: what it said.
        interrupted: it did not end of itself. hung: not even when it was interrupted.
    """

    code: int
    out: str
    err: str
    seconds: float
    interrupted: bool = False
    hung: bool = False


def run(argv: list[str], folder: Path, limits: Limits) -> Outcome:
    """``revstep`` with ``argv`` in ``folder``."""
    pipes = [os.pipe() for _ in range(2)]
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_command(argv, folder, [write for _, write in pipes], limits)
    for read, write in pipes:
        os.close(write)
        os.set_blocking(read, False)
    said: list[list[bytes]] = [[], []]
    interrupted = hung = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        for (read, _), parts in zip(pipes, said):
            _drain(read, parts)
        if ended:
            break
        passed = time.monotonic() - began
        if passed > limits.patience and not interrupted:
            interrupted = True
            _signal(child, signal.SIGINT)
        if passed > limits.patience + GRACE and not hung:
            hung = True
            _signal(child, signal.SIGKILL)
        time.sleep(0.002 if passed < 0.2 else 0.02)
    _signal(child, signal.SIGKILL)  # processes that it left behind
    for read, _ in pipes:
        os.close(read)
    texts = [b"".join(parts).decode("utf-8", "replace") for parts in said]
    return Outcome(os.waitstatus_to_exitcode(status), *texts, time.monotonic() - began, interrupted, hung)


def _drain(handle: int, parts: list[bytes]) -> None:
    with suppress(BlockingIOError):
        while block := os.read(handle, 1 << 16):
            parts.append(block)


def _signal(child: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(child, number)  # the child leads a group of its own


def _be_the_command(argv: list[str], folder: Path, said: list[int], limits: Limits) -> None:
    """What the child does; it does not return."""
    code = 70
    try:
        os.setpgid(0, 0)
        os.chdir(folder)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(os.open(limits.stdout, os.O_WRONLY) if limits.stdout else said[0], 1)
        os.dup2(said[1], 2)
        sys.stdin, sys.stdout, sys.stderr = (
            open(0, encoding=limits.encoding),
            open(1, "w", encoding=limits.encoding, closefd=False),
            open(2, "w", encoding=limits.encoding, errors="backslashreplace", closefd=False, buffering=1),
        )
        for kind, most in ((resource.RLIMIT_AS, _virtual() + MEMORY), (resource.RLIMIT_FSIZE, limits.file)):
            resource.setrlimit(kind, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it
        signal.signal(signal.SIGINT, signal.default_int_handler)
        from revstep._cli import main

        code = main(argv)
        sys.stdout.flush()  # an interpreter that ends does it too
    except BaseException:
        code = 1
        with suppress(BaseException):
            os.write(2, traceback.format_exc().encode("utf-8", "backslashreplace"))
    finally:
        os._exit(code)


def _virtual() -> int:
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
