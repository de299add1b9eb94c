"""What surrounds a run beside its arguments: recorded when it begins, entered again on every way back."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import torch
from torch.nn.utils import parametrize

from .._recurrence.ambient import Autocast, Switches

#: Every kind of device that autocast knows: a field may compute on another one than the state's.
DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps", "hpu", "xla", "mtia", "maia", "privateuseone")


class Surroundings:
    """Grad mode, inference mode, autocast and the switches of the process as they are at construction.

    The same kernels are chosen under the same surroundings, and only the same kernels give the same bits.
    """

    def __init__(self) -> None:
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._autocast = Autocast(DEVICE_TYPES)
        self._switches = Switches()

    @property
    def grad_enabled(self) -> bool:
        """Autograd records what is computed here."""
        return self._grad and not self._inference

    @contextlib.contextmanager
    def now(self) -> Iterator[None]:
        """Around the run itself: all as it is, but without caches of what was computed from weights."""
        with contextlib.ExitStack() as stack:
            _without_caches(stack)
            yield

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Around a way back: all as it was."""
        switches = copy.copy(self._switches)
        switches.compare()
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self._inference))
            stack.enter_context(torch.set_grad_enabled(self._grad))
            self._autocast.enter(stack)
            _without_caches(stack)
            switches.enter(stack)
            yield


def _without_caches(stack: contextlib.ExitStack) -> None:
    """Autocast and ``parametrize.cached()`` keep a weight's cast or product with its graph: an evaluation
    that takes it from there would share a graph with the one that made it. The values are the same without.
    """
    stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
    torch.set_autocast_cache_enabled(False)
    if parametrize._cache_enabled:  # a global of the process: left alone where nobody uses it
        stack.callback(setattr, parametrize, "_cache_enabled", parametrize._cache_enabled)
        parametrize._cache_enabled = 0
