"""Ambient state a block's evaluation depends on: autocast, random generators, cached parametrizations. Recorded once, re-entered in backward."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils import parametrize


class _Rebuilds(threading.local):
    """``with`` it: this thread evaluates a block again."""

    depth = 0

    def __enter__(self) -> None:
        self.depth += 1

    def __exit__(self, *_: object) -> None:
        self.depth -= 1


rebuilds = _Rebuilds()


def rebuilding() -> bool:
    """Whether the calling thread is inside the re-evaluation of a block (in backward, or in ``reconstruct``).

    For forward hooks and blocks that count or record what passes by: they run in the forward pass and again in the re-evaluation.
    What a block computes must not depend on it.
    """
    return rebuilds.depth > 0


class ParametrizationCache:
    """Whether ``torch.nn.utils.parametrize.cached()`` was in force at construction; :meth:`enter` starts with an empty one, or with none.

    A weight cached in the forward pass belongs to that graph: the block evaluated again must compute its own.
    """

    def __init__(self) -> None:
        self._enabled = parametrize._cache_enabled

    def enter(self, stack: contextlib.ExitStack) -> None:
        before = parametrize._cache_enabled, parametrize._cache
        if not self._enabled and not before[0]:  # these are globals of the process: leave them alone where nobody uses them
            return
        stack.callback(self._set, *before)
        self._set(self._enabled, {})

    @staticmethod
    def _set(enabled: int, cache: dict) -> None:
        parametrize._cache_enabled, parametrize._cache = enabled, cache


class Autocast:
    """The autocast state of the given device types at construction; ``with autocast():``, or :meth:`enter` among other contexts, enters it again."""

    def __init__(self, device_types: Sequence[str]):
        self._states = [(d, torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in device_types]
        self._cache = torch.is_autocast_cache_enabled()

    def enter(self, stack: contextlib.ExitStack) -> None:
        for device_type, enabled, dtype in self._states:
            if enabled or (torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)) != (False, dtype):
                stack.enter_context(torch.autocast(device_type, dtype=dtype, enabled=enabled, cache_enabled=self._cache))

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            self.enter(stack)
            yield


class Generators:
    """The global random generators of the CPU and of the devices at hand."""

    def __init__(self, devices: Sequence[torch.device]):
        self._devices = sorted({d for d in devices if d.type not in ("cpu", "meta")}, key=str)

    def get(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.get_device_module(d).get_rng_state(d) for d in self._devices)]

    def set(self, states: Sequence[Tensor]) -> None:
        torch.set_rng_state(states[0])
        for device, state in zip(self._devices, states[1:]):
            torch.get_device_module(device).set_rng_state(state, device)

    @contextlib.contextmanager
    def at(self, states: Sequence[Tensor] | None) -> Iterator[None]:
        """Run with the given states, then put back the present ones. None: nothing to replay."""
        if states is None:
            yield
            return
        now = self.get()
        self.set(states)
        try:
            yield
        finally:
            self.set(now)


def same_states(a: Sequence[Tensor], b: Sequence[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b))
