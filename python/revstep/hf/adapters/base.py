"""What an adapter is: how the increment of a decoder layer is got from the layer."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

from torch import nn

from ...errors import ConfigError


class Adapter(abc.ABC):
    """Makes the blocks of a ReversibleStack from the decoder layers of a model. Found like the schemes.

    Class attributes:
        name: registry key, and what ``convert(adapter=...)`` takes.
        streams: 1 for blocks that return the increment f(x); 2 for pairs (F, G), attention and MLP, as Hamiltonian needs them.
        fallback: used only when asked for by name.
    """

    name: ClassVar[str]
    streams: ClassVar[int] = 1
    fallback: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if not isinstance(getattr(cls, "name", None), str) or cls.streams not in (1, 2):
            raise ConfigError(f"adapter class {cls.__name__} must define `name` (str) and `streams` (1 or 2)")

    @abc.abstractmethod
    def missing(self, layer: nn.Module) -> str:
        """What this adapter would need and the layer does not have; empty when it fits as far as can be seen without running it."""

    @abc.abstractmethod
    def block(self, layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
        """A module that contains ``layer`` and returns its increment (for two streams: has ``halves()``). ``forward``: the layer's own."""


class LayerBlock(nn.Module):
    """Common part of the blocks: the layer, whose parameters these are, and the layer's own forward."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Any]):
        super().__init__()
        self.layer = layer
        self.own_forward = forward


def with_rest(increment: Any, out: Any) -> Any:
    """The increment, followed by what else the layer returned in its tuple ``out``."""
    return (increment, *out[1:]) if isinstance(out, tuple) else increment
