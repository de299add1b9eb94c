"""Discovery: every module of this package that defines a Scheme with a name registers it. There is no list to keep."""

from __future__ import annotations

import functools
import inspect

from ..discovery import discover
from ..errors import ConfigError
from .base import Scheme


@functools.cache
def _discover() -> dict[str, type[Scheme]]:
    return discover(__name__.rpartition(".")[0], Scheme)


def available() -> dict[str, type[Scheme]]:
    """All schemes by name."""
    return dict(_discover())


def make(name: str, **options) -> Scheme:
    """A scheme by name.

    Raises:
        ConfigError: unknown name or option; the message lists the known ones.
    """
    schemes = _discover()
    if name not in schemes:
        raise ConfigError(f"unknown scheme {name!r}, expected one of {', '.join(schemes)}")
    known = inspect.signature(schemes[name]).parameters
    for option in options:
        if option not in known:
            raise ConfigError(f"scheme {name!r} has no option {option!r}, expected some of {', '.join(known) or 'none'}")
    return schemes[name](**options)
