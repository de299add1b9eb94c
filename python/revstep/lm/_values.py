"""Checks of single configuration values: each refuses in one sentence what cannot be used."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from ..errors import ConfigError


def whole(name: str, value: Any, least: int) -> None:
    """``value`` is an int (not a bool) of at least ``least``, or ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least {least}")


def number(
    name: str,
    value: Any,
    least: float,
    most: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    """``value`` is a finite number in the interval from ``least`` to ``most``, or ConfigError."""
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    ok = (
        ok
        and (value > least if open_low else value >= least)
        and (value < most if open_high else value <= most)
    )
    if not ok:
        raise ConfigError(
            f"{name} is {value!r}; expected a number in {'(' if open_low else '['}{least},"
            f" {most}{')' if open_high else ']'}"
        )


def flag(name: str, value: Any) -> None:
    """``value`` is True or False, or ConfigError."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; expected True or False")


def one_of(name: str, value: Any, known: Iterable[str]) -> None:
    """``value`` is one of ``known``, or ConfigError."""
    known = tuple(known)
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; expected one of {', '.join(known)}")
