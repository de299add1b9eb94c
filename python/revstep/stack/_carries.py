"""Carries that wait in host memory for backward (option ``offload_carries``).

Each is copied as soon as its step is taken, on a stream of its own beside the blocks, and comes back one step
before the inverse reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Offloaded:
    """The carries of one step in host memory, page-locked where the device is no CPU."""

    __slots__ = ("_back", "_device", "_host", "_stream")

    def __init__(self, carry: Tensor, stream: Any):
        self._device, self._stream, self._back = carry.device, stream, None
        self._host = torch.empty(carry.shape, dtype=carry.dtype, pin_memory=carry.device.type != "cpu")
        here = torch.get_device_module(carry.device)
        stream.wait_stream(here.current_stream(carry.device))
        with here.stream(stream):
            self._host.copy_(carry, non_blocking=True)
        _used_by(carry, stream)

    def fetch(self) -> None:
        """Begin to bring them back."""
        if self._back is None:
            with torch.get_device_module(self._device).stream(self._stream):
                self._back = self._host.to(self._device, non_blocking=True)

    def get(self) -> Tensor:
        """The carries on their device. They can be had again: a graph that is kept is read twice."""
        self.fetch()
        current = torch.get_device_module(self._device).current_stream(self._device)
        current.wait_stream(self._stream)
        carry, self._back = self._back, None
        _used_by(carry, current)
        return carry


class Offload:
    """Sends the carries of one forward pass to host memory."""

    def __init__(self, device: torch.device):
        self._stream = torch.get_device_module(device).Stream()

    def __call__(self, carry: Tensor) -> Tensor | Offloaded:
        return Offloaded(carry, self._stream) if carry.numel() else carry


def carry_of(records: Sequence[Any], k: int) -> Tensor:
    """What step ``k`` kept, while that of the step below sets out."""
    carry = records[k].carry
    carry = carry.get() if isinstance(carry, Offloaded) else carry
    if k and isinstance(records[k - 1].carry, Offloaded):
        records[k - 1].carry.fetch()
    return carry


def _used_by(t: Tensor, stream: Any) -> None:
    """The memory of ``t`` is not given away before the work that ``stream`` has now is done."""
    if t.device.type != "cpu":
        t.record_stream(stream)
