"""A field given as a C function that fails: what it raised is caught, and what it did not write is found.

A function that C calls cannot raise into C. Python, numba and Cython report the exception to
``sys.unraisablehook`` and go on with whatever lies in the output. While a field of that kind is asked, a hook
of our own stands there, takes the exceptions that come out of it, and hands all others on to the hook that
was there before.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np

from ..errors import CallbackError

#: Before each call ``out`` is filled with this NaN, which no arithmetic makes; csrc/ode/loop_parts.hpp has it
#: too.
UNWRITTEN = np.array([0x7FF8726576737465], dtype=np.uint64).view(np.float64)


class Catcher:
    """Catches what callbacks raise while a field is asked: a context manager.

    Args:
        thread: is called in the thread that reports an exception, and returns a number other than 0 where
            this thread is just now inside of the calls that are watched.

    Attributes:
        owner: the thread that began.
        exception: the first that was caught; None.
        stop: holds the number of the thread in which it was, 0 before; the compiled loop looks at it after
            every call.
    """

    def __init__(self, thread: Callable[[], int] | None = None):
        self.owner = own = threading.get_ident()
        self._thread = thread or (lambda: own if threading.get_ident() == own else 0)
        self.stop = ctypes.c_int64(0)
        self.exception = None

    def __enter__(self) -> Catcher:
        _add(self)
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        _remove(self)

    def takes(self, report: Any) -> bool:
        """Whether the exception is one of this field, and then keep it."""
        thread = self._thread()
        if not thread:
            return False
        found = report.exc_value if report.exc_value is not None else report.exc_type()
        # Ctrl-C is told whatever else failed at the same time, in another thread.
        if self.exception is None or (
            isinstance(self.exception, Exception) and not isinstance(found, Exception)
        ):
            self.exception = found
        if self.stop.value == 0:
            self.stop.value = thread
        return True

    def raise_caught(self, where: str, step: int = -1, t: float | None = None, system: int = -1) -> None:
        """Raise what was caught, if anything: KeyboardInterrupt and its like as they are, all else as a
        CallbackError.

        Args:
            where: of the message: the step and the time.
            step: in which it happened; -1: not known.
            t: the time the field was asked at.
            system: index of the system; -1: not known.
        """
        found, self.exception = self.exception, None
        if found is None:
            return
        if not isinstance(found, Exception):
            raise found
        name = type(found).__name__
        raise CallbackError(
            f"{where}: the callback raised {name}: {found}. A C function cannot pass an exception on, so the"
            " run ends here and no number was made of this call; mend the function, or stop the run before"
            " this time",
            step,
            t,
            system,
        ) from found


def unwritten(
    where: str, component: int, dim: int, step: int = -1, t: float | None = None, system: int = -1
) -> CallbackError:
    """The error of a callback that returned with ``out[component]`` as it was before the call."""
    return CallbackError(
        f"{where}: the callback returned and out[{component}] was not written (or was added to instead of"
        f" set), expected all {dim} components to be set at every call; look for a branch or a loop that ends"
        " early, and for an error that was printed only",
        step,
        t,
        system,
    )


class _Hook:
    """Stands in ``sys.unraisablehook`` for as long as anything is watched."""

    def __init__(self, before: Callable[[Any], Any]):
        self.before = before

    def __call__(self, report: Any) -> None:
        # The innermost run is the last: a callback may integrate something itself.
        if _from_a_callback(report) and any(catcher.takes(report) for catcher in reversed(tuple(_catchers))):
            return
        self.before(report)


def _from_a_callback(report: Any) -> bool:
    """ctypes says so in words; numba and Cython name the function in a string, where Python itself gives an
    object.
    """
    return "ctypes callback function" in (report.err_msg or "") or isinstance(report.object, str)


_catchers: list[Catcher] = []
_lock = threading.Lock()
_hook: _Hook | None = None


def _add(catcher: Catcher) -> None:
    global _hook
    with _lock:
        # Another one each time: whoever replaced the last one may still hand on to it, and it to the one
        # before.
        if _hook is None or sys.unraisablehook is not _hook:
            _hook = _Hook(sys.unraisablehook)
            sys.unraisablehook = _hook
        _catchers.append(catcher)


def _remove(catcher: Catcher) -> None:
    global _hook
    with _lock:
        _catchers.remove(catcher)
        if not _catchers and _hook is not None:
            # Else it was replaced meanwhile, and what stands there is not ours to take away.
            if sys.unraisablehook is _hook:
                sys.unraisablehook = _hook.before
            _hook = None


def _forked() -> None:
    """In a child process: the threads that held the lock, or were inside of a run, are not there."""
    global _lock
    _lock = threading.Lock()
    _catchers[:] = [catcher for catcher in _catchers if catcher.owner == threading.get_ident()]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
