"""Which devices the compiled kernels run on."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch

from .. import _C


def current(device: torch.device) -> Any:
    """A context in which the CUDA device is the current one, in whatever thread."""
    return torch.cuda.device(device) if device.index is not None else contextlib.nullcontext()


@functools.cache
def refusal(device: torch.device) -> str:
    """Why no compiled kernel runs on this device; empty where they do.

    Asked at the first launch there and not before, for asking starts CUDA: from then on CUDA_VISIBLE_DEVICES
    is read no more, and a forked child has no device.
    """
    if device.type == "cpu":
        return ""
    if device.type != "cuda":
        return f"there are none for {device.type!r}"
    if not _C.built_with_cuda():
        return _C.cuda_status()
    with current(device):
        return _C.cuda_status()
