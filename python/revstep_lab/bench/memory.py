"""Whether the C library gives freed memory back to the system, for the length of a measurement."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

#: mallopt's names for: the largest block that is not mapped on its own, the free memory at the top that is kept. And glibc's own values.
_MMAP, _TRIM = -3, -1
_OWN, _ALL = 128 * 1024, 2**31 - 1


@contextlib.contextmanager
def retained() -> Iterator[bool]:
    """Freed memory stays with the process, so that an output of an operator needs no new pages. False where that cannot be set: no glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    done = mallopt is not None and bool(mallopt(_MMAP, _ALL // 2) and mallopt(_TRIM, _ALL))
    try:
        yield done
    finally:
        if done:
            mallopt(_MMAP, _OWN)
            mallopt(_TRIM, _OWN)
