"""Files that are there whole or not at all: written beside, flushed to the disk, then renamed."""

from __future__ import annotations

import os
from pathlib import Path


def write_flushed(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` and wait until the disk has it.

    Raises:
        OSError: disk full, no permission, and the like.
    """
    with path.open("wb") as file:
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
    """Replace ``path`` by ``content``, or leave it as it was.

    Raises:
        OSError: disk full, no permission, and the like; ``path`` is untouched.
    """
    part = path.with_name(path.name + ".part")
    try:
        write_flushed(part, content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    flush_folder(path.parent)
