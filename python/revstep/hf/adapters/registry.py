"""Discovery of the adapters, and the choice among them."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from torch import nn

from ...discovery import discover
from ...errors import ConfigError, UnsupportedError
from .base import Adapter


@functools.cache
def _discover() -> dict[str, type[Adapter]]:
    return discover(__name__.rpartition(".")[0], Adapter, skip=("base", "registry"))


def available() -> dict[str, type[Adapter]]:
    """All adapters by name."""
    return dict(_discover())


def choose(layers: Sequence[nn.Module], streams: int, wanted: str | Adapter | None = None) -> Adapter:
    """The adapter for these decoder layers: the one wanted, or the first (by name) that has ``streams`` streams and fits every layer.

    Raises:
        ConfigError: an unknown name, or one for another number of streams. UnsupportedError: none fits; says what each would need.
    """
    if isinstance(wanted, str):
        if wanted not in _discover():
            raise ConfigError(f"unknown adapter {wanted!r}, expected one of {', '.join(_discover())}")
        wanted = _discover()[wanted]()
    if wanted is not None and wanted.streams != streams:
        raise ConfigError(f"adapter {wanted.name!r} makes blocks for {wanted.streams} stream(s), the scheme needs {streams}")
    candidates = [wanted] if wanted is not None else [cls() for cls in _discover().values() if cls.streams == streams and not cls.fallback]
    reasons = []
    for adapter in candidates:
        reason = next(filter(None, (adapter.missing(layer) for layer in layers)), "")
        if not reason:
            return adapter
        reasons.append(reason)
    raise UnsupportedError(
        f"no adapter splits {type(layers[0]).__name__} for {'two streams' if streams == 2 else 'one stream'}: {'; '.join(reasons)}. "
        "Use a scheme of one stream such as Blend, or pass an adapter of your own (a subclass of revstep.hf.Adapter)"
    )
