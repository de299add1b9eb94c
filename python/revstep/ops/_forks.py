"""A forked child has none of its parent's threads: whoever waits for them there waits for ever.

The OpenMP runtime, which torch and our kernels share, keeps its threads from one parallel region to the next,
and does not see that a fork left them behind. So a child works with one thread, in our kernels and in torch
(``torch.set_num_threads``). A process that is spawned, or a child that executes another program, has threads
of its own.
"""

from __future__ import annotations

import os

import torch

_forked = False


def threads(wanted: int | None = None) -> int:
    """How many threads a kernel may take: ``wanted``, or as many as torch does; one in a forked child."""
    if _forked:
        return 1
    return torch.get_num_threads() if wanted is None else wanted


def _child() -> None:
    global _forked
    _forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_child)
