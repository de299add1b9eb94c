"""The base of this package's dispatch modes, in which several threads may be at once."""

from __future__ import annotations

import threading
from typing import Any

from torch.utils import _python_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

#: torch's flags of the process, by which torch.compile knows that a mode is on.
_FLAGS = (
    "_is_in_torch_dispatch_mode",
    "_is_in_non_infra_torch_dispatch_mode",
    "_is_in_any_mode_without_ignore_compile_internals",
)


class ThreadedMode(TorchDispatchMode):
    """A dispatch mode after which torch's flags of the process are what they were.

    Each mode puts them back as it found them. Of two threads whose modes overlap, the one that came second
    finds them set and leaves them so, and torch.compile of torch 2.9 compiles nothing from then on, without a
    word. Here the last thread that leaves puts them back as the first one found them.
    """

    _lock = threading.Lock()
    _inside = 0
    _found: tuple[bool, ...] = ()

    def __enter__(self) -> Any:
        with ThreadedMode._lock:
            if not ThreadedMode._inside:
                ThreadedMode._found = tuple(getattr(_python_dispatch, name, False) for name in _FLAGS)
            ThreadedMode._inside += 1
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        with ThreadedMode._lock:
            ThreadedMode._inside -= 1
            if not ThreadedMode._inside:
                _put_back(ThreadedMode._found)


def _put_back(flags: tuple[bool, ...]) -> None:
    for name, flag in zip(_FLAGS, flags):
        setattr(_python_dispatch, name, flag)
    # Newer ones keep the last flag a second time, for the guards of compiled code.
    guard = getattr(_python_dispatch, "set_is_in_mode_without_ignore_compile_internals", None)
    if guard is not None:
        guard(flags[-1])
