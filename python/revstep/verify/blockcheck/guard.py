"""Whatever a user's code raises becomes words; only Ctrl-C ends the check."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from ...errors import ConfigError


def described(error: BaseException) -> str:
    """The error's kind and message, also where the message cannot be made."""
    try:
        words = str(error)
    except Exception:
        words = "(its message cannot be read)"
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


@contextlib.contextmanager
def caught(tell: Callable[[str], None]) -> Iterator[None]:
    """``tell`` what was raised inside, and go on after the block. SystemExit is an error here too."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        tell(described(error))


@contextlib.contextmanager
def refusing(what: str) -> Iterator[None]:
    """A ConfigError that begins with ``what`` in place of anything that is raised inside.

    Raises:
        ConfigError: anything was raised inside.
    """
    try:
        yield
    except (KeyboardInterrupt, ConfigError):
        raise
    except BaseException as error:
        raise ConfigError(f"{what} {described(error)}") from error
