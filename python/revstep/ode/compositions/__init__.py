"""Compositions and splittings of high order, as data, found by reading the package."""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache

from ...errors import ConfigError
from ._base import Composition, Splitting

__all__ = ["Composition", "Splitting", "available", "get"]


@lru_cache(maxsize=1)
def _found() -> dict[str, Composition | Splitting]:
    found: dict[str, Composition | Splitting] = {}
    for info in pkgutil.iter_modules(__path__):
        for value in vars(importlib.import_module(f"{__name__}.{info.name}")).values():
            if not isinstance(value, (Composition, Splitting)):
                continue
            if found.setdefault(value.name, value) is not value:
                raise ConfigError(
                    f"two compositions are called {value.name!r} (one in {info.name}.py): names are registry"
                    " keys, rename one"
                )
    return dict(sorted(found.items()))


def available() -> dict[str, Composition | Splitting]:
    """Every composition, by name."""
    return dict(_found())


def get(name: str) -> Composition | Splitting:
    """The composition of that name. Raises ConfigError listing the names when there is none."""
    if name not in _found():
        raise ConfigError(f"no composition {name!r}, expected one of {', '.join(_found())}")
    return _found()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
