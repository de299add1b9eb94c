"""What an adapter is: how the increment of a decoder layer is got from the layer."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import nn

from ..._imports import discover
from ...errors import ConfigError, UnsupportedError


class Adapter(abc.ABC):
    """Makes the blocks of a ReversibleStack from the decoder layers of a model. Found like the schemes.

    Class attributes:
        name: registry key, and what ``convert(adapter=...)`` takes.
        streams: 1 for blocks that return the increment f(x); 2 for pairs (F, G), attention and MLP, as
            Hamiltonian needs them.
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
        """What this adapter would need and the layer does not have; empty when it fits as far as can be seen
        without running it.
        """

    @abc.abstractmethod
    def block(self, layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
        """A module that contains ``layer`` and returns its increment (for two streams: has ``halves()``).
        ``forward``: the layer's own.
        """


class LayerBlock(nn.Module):
    """Common part of the blocks: the layer, whose parameters these are, and the layer's own forward."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Any]):
        super().__init__()
        self.layer = layer
        self.own_forward = forward


def with_rest(increment: Any, out: Any) -> Any:
    """The increment, followed by what else the layer returned in its tuple ``out``."""
    return (increment, *out[1:]) if isinstance(out, tuple) else increment


# ---- Discovery of the adapters, and the choice among them ----


@functools.cache
def _discover() -> dict[str, type[Adapter]]:
    return discover(__name__.rpartition(".")[0], Adapter)


def available() -> dict[str, type[Adapter]]:
    """All adapters by name."""
    return dict(_discover())


def choose(layers: Sequence[nn.Module], streams: int, wanted: str | Adapter | None = None) -> Adapter:
    """The adapter for these decoder layers: the one wanted, or the first (by name) that has ``streams``
    streams and fits every layer.

    Raises:
        ConfigError: an unknown name, or one for another number of streams. UnsupportedError: none fits; says
            what each would need.
    """
    if isinstance(wanted, str):
        if wanted not in _discover():
            raise ConfigError(f"unknown adapter {wanted!r}, expected one of {', '.join(_discover())}")
        wanted = _discover()[wanted]()
    if wanted is not None and wanted.streams != streams:
        raise ConfigError(
            f"adapter {wanted.name!r} makes blocks for {wanted.streams} stream(s), the scheme needs {streams}"
        )
    candidates = (
        [wanted]
        if wanted is not None
        else [cls() for cls in _discover().values() if cls.streams == streams and not cls.fallback]
    )
    reasons = []
    for adapter in candidates:
        reason = next(filter(None, (adapter.missing(layer) for layer in layers)), "")
        if not reason:
            return adapter
        reasons.append(reason)
    raise UnsupportedError(
        f"no adapter splits {type(layers[0]).__name__} for {'two streams' if streams == 2 else 'one stream'}:"
        f" {'; '.join(reasons)}. Use a scheme of one stream such as Blend, or pass an adapter of your own (a"
        " subclass of revstep.hf.Adapter)"
    )
