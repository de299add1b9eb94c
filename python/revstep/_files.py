"""Files as the package reads and writes them. What is read has to be a regular file, so that a pipe cannot
block and a device cannot fill the memory. What is written is there whole or not at all: written beside,
flushed to the disk, then renamed.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import RevstepError

# ------------------------------------------------------------------------------------------------------------
# Reading.


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """``path`` for reading, if it is a regular file or a link to one.

    Raises:
        OSError: it is not there, cannot be opened, or is a pipe, a device or a folder.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def read_bytes(path: str | os.PathLike) -> bytes:
    """All of a regular file. Raises OSError as :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read()


def read_start(path: str | os.PathLike, count: int = 8) -> bytes:
    """The first bytes of a regular file. Raises OSError as :func:`open_regular`."""
    with open_regular(path) as file:
        return file.read(count)


def refuse_irregular(folder: str | os.PathLike) -> None:
    """See that a folder that another package reads holds nothing it would wait for, or read without end.

    Raises:
        OSError: a pipe or a device is in it.
    """
    for path in Path(folder).iterdir():
        mode = path.stat().st_mode if path.exists() else stat.S_IFREG
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise OSError(errno.EINVAL, "a pipe or a device among the files", str(path))


def read_json(path: str | os.PathLike) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: as :func:`open_regular`.
        ValueError: it is not JSON in UTF-8, or nested deeper than Python goes.
    """
    try:
        return json.loads(read_bytes(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 ({error.reason} at byte {error.start})") from None
    except RecursionError:
        raise ValueError("its lists are nested deeper than Python goes") from None


# ------------------------------------------------------------------------------------------------------------
# JSON that says when it is not what was written.

_SEAL = "checksum"


def sealed(body: dict[str, Any]) -> bytes:
    """``body`` as JSON text, with a checksum of its values as one more of them."""
    body = json.loads(json.dumps(body))
    return (json.dumps(body | {_SEAL: _digest(body)}, indent=1) + "\n").encode()


def unsealed(found: Any) -> dict[str, Any]:
    """What :func:`sealed` was given, from the value that its text holds.

    Raises:
        ValueError: there is no checksum, or the values are others.
    """
    if not isinstance(found, dict) or _SEAL not in found:
        raise ValueError("it has no checksum")
    body = {name: value for name, value in found.items() if name != _SEAL}
    if found[_SEAL] != _digest(body):
        raise ValueError("it is not what was written (its checksum differs)")
    return body


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------------------
# Writing.


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: As safetensors writes the system's number, and how torch's archives and C++ streams say it.
_FULL_TEXT = re.compile(rf"os error ({'|'.join(map(str, _FULL))})\b|unexpected pos|iostream error")


def advice(error: Exception) -> str:
    """What to do about a folder or file that could not be written."""
    full = error.errno in _FULL if isinstance(error, OSError) else bool(_FULL_TEXT.search(str(error)))
    return "free some space or choose another --out" if full else "check the folder"


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
    """An OSError of a write that does not say which file it is of says so."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def write_flushed(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` and wait until the disk has it.

    Raises:
        OSError: disk full, no permission, and the like.
    """
    with naming(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Wait until the disk has the names in ``folder``; without it a rename can be lost when the
    power goes.
    """
    if os.name == "nt":
        return  # a folder cannot be opened there, and renames are flushed by the file system
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, or leave it as it was. A file that is replaced keeps its permissions.

    Raises:
        OSError: disk full, no permission, and the like; ``path`` is untouched.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        write_flushed(part, content)
        with contextlib.suppress(FileNotFoundError):
            os.chmod(part, stat.S_IMODE(os.stat(path).st_mode))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    flush_folder(path.parent)


def write_output(path: str | os.PathLike, content: bytes) -> None:
    """``content`` to what a user named. A regular file, or one that is not there yet, is written whole or not
    at all, also where a link leads to it; the link stays. Into a pipe or a device it is written as it is.

    Raises:
        OSError: disk full, no permission, a folder, and the like.
    """
    try:
        there = os.stat(path)
    except FileNotFoundError:
        there = None
    stream = None if there is None else _stream(there)
    if stream is None and (there is None or stat.S_ISREG(there.st_mode)):
        write_atomic(Path(os.path.realpath(path)), content)
        return
    handle = os.open(path, os.O_WRONLY) if stream is None else stream
    try:
        with naming(path):
            while content:
                content = content[os.write(handle, content) :]
    finally:
        if stream is None:
            os.close(handle)


def _stream(there: os.stat_result) -> int | None:
    """stdout or stderr, where one of them is that file: what was printed to it is kept."""
    for stream, handle in ((sys.stdout, 1), (sys.stderr, 2)):
        with contextlib.suppress(OSError, ValueError):
            if os.path.samestat(there, os.fstat(handle)):
                if stream is not None:
                    stream.flush()
                return handle
    return None


def refuse_output(path: str | os.PathLike, folder: bool = False) -> None:
    """See that a file, or with ``folder`` a folder, can be written at ``path``; before long work, and without
    writing anything.

    Raises:
        OSError: it cannot: a folder where a file is to be or the other way round, nothing above it, no
            permission.
    """
    where = Path(os.path.realpath(path, strict=False))
    if not os.fspath(path):
        raise OSError(errno.ENOENT, "the name is empty", "")
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and stat.S_ISDIR(mode) != folder:
        found, wanted = ("a folder", "a file") if not folder else ("a file", "a folder")
        raise OSError(errno.EEXIST, f"it is {found}, and {wanted} is to be written", str(path))
    if mode is None:
        above = where.parent
        while folder and not above.exists() and above != above.parent:
            above = above.parent
        if not stat.S_ISDIR(os.stat(above).st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "above it is no folder", str(path))
        where = above
    if not os.access(where, os.W_OK):
        raise PermissionError(errno.EACCES, "it cannot be written", str(path))


def make_folder(folder: Path) -> list[Path]:
    """Make it and what is missing above it -> those that were made, the deepest first. Raises OSError."""
    missing = [folder, *folder.parents]
    missing = missing[: next((i for i, path in enumerate(missing) if path.exists()), len(missing))]
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def remove_empty(folders: list[Path]) -> None:
    """Those of :func:`make_folder` that nothing was written into."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def write_folder(folder: str | os.PathLike, write: Callable[[Path], Any]) -> None:
    """The files that ``write(temporary folder)`` makes, moved into ``folder`` once all of them are whole;
    other files there stay.

    Raises:
        RevstepError: they could not be written; ``folder`` is as it was.
    """
    folder = Path(folder)
    made: list[Path] = []
    try:
        made = make_folder(folder)
        with tempfile.TemporaryDirectory(prefix=".part-", dir=folder, ignore_cleanup_errors=True) as name:
            part = Path(name)
            write(part)
            _move(part, folder)
        flush_folder(folder)
    except (RevstepError, MemoryError):
        raise
    except Exception as error:  # of libraries that write: each has its own for a full disk
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RevstepError(f"could not write {folder}: {said}; {advice(error)}") from error
    finally:
        remove_empty(made)


def _move(part: Path, folder: Path) -> None:
    files = sorted(path for path in part.rglob("*") if path.is_file())
    for file in files:
        with file.open("rb+") as opened:
            os.fsync(opened.fileno())
    for file in files:
        target = folder / file.relative_to(part)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, "a folder is where a file is to be written", str(target))
    for file in files:
        os.replace(file, folder / file.relative_to(part))


@contextlib.contextmanager
def kept_if_done(folder: Path) -> Iterator[None]:
    """What is written into ``folder`` inside is removed where an exception ends it; a folder that was there
    before stays as it is.
    """
    if folder.exists():
        yield
        return
    made = make_folder(folder)
    try:
        yield
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        remove_empty(made[1:])
        raise
