"""A folder that one run at a time writes into: who comes second is told who holds it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ._files import make_folder, naming, remove_empty
from .errors import ConfigError

NAME = ".lock"


class FolderInUseError(ConfigError):
    """Another run writes into the folder."""


@contextlib.contextmanager
def only_writer(folder: str | os.PathLike) -> Iterator[None]:
    """Inside, this process alone writes into ``folder``, which is made if need be.

    The operating system holds the lock on ``folder/.lock``, so that the lock of a process that was killed is
    none. A folder that is made here and stays empty is taken away again.

    Raises:
        FolderInUseError: another run writes there; says which.
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    made = make_folder(folder)
    path = folder / NAME
    try:
        handle = _take(path)
        try:
            with naming(path):
                _sign(handle)
            yield
        finally:
            # Before it is let go: whoever opened it meanwhile sees that it is no longer the one of this name.
            with contextlib.suppress(OSError):
                path.unlink()
            os.close(handle)
    finally:
        remove_empty(made)


def _take(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            if not _locked(handle):
                raise FolderInUseError(_who(path))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), os.fstat(handle)):
                    return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the holder before took it away between opening and locking


def _locked(handle: int) -> bool:
    """Lock the file; False where another process has."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        os.lseek(handle, 1 << 30, os.SEEK_SET)  # behind the text, which others may read
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(handle: int) -> None:
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200]
    text = json.dumps(
        {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "command": command,
            "since": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
    )
    os.lseek(handle, 0, os.SEEK_SET)
    os.truncate(handle, 0)
    os.write(handle, text.encode("utf-8", "backslashreplace"))


def _who(path: Path) -> str:
    try:
        said = json.loads(path.read_bytes())
        holder = f"process {said['process']} on {said['host']} ({said['command']}), since {said['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        holder = "another process"
    return f"{path.parent} is being written by {holder}: wait for it to end, or choose another folder"
