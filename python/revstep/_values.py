"""Single values of a configuration: bytes, lengths and counts read and written as people write them, and
checks that refuse a value in one sentence.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable
from typing import Any

from .errors import ConfigError

#: The largest whole number that torch takes.
LARGEST = 2**63 - 1
#: Of numpy's global generator, which other packages seed with theirs.
LARGEST_SEED_32 = 2**32 - 1
#: Tokens of a sequence: more than any, and few enough that products of them stay whole numbers.
LONGEST = 2**40


def shown(value: Any, most: int = 60, quoted: bool = True) -> str:
    """``value`` as messages show it: as Python writes it, cut where it is long."""
    try:
        said = repr(value) if quoted else str(value)
    except ValueError:  # a whole number with more digits than Python writes
        return f"a whole number of about {int(value.bit_length() * 0.30103)} digits"
    return said if len(said) <= most else f"{said[:most]}... ({len(said)} characters)"


# ------------------------------------------------------------------------------------------------------------
# Bytes and counts as people write them.

UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


def parse_bytes(text: str | int | float) -> int:
    """``"80GB"`` -> 80e9, ``"80GiB"`` -> 80 * 2**30, a number as it is.

    Raises:
        ConfigError: not a positive size.
    """
    match = re.fullmatch(
        r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-zA-Z]*)\s*", text if isinstance(text, str) else repr(text)
    )
    known = not isinstance(text, bool) and match is not None and match[2].lower() in UNITS
    found = float(match[1]) * UNITS[match[2].lower()] if known else 0.0
    if not 0 < found < LARGEST:
        raise ConfigError(
            f"memory is {shown(text)}, expected bytes or a size such as '80GB' (10**9) or '80GiB' (2**30),"
            " less"
            " than 2**63 bytes"
        )
    return int(found)


def parse_length(text: str | int, what: str = "sequence") -> int:
    """Tokens: ``8k`` and ``8K`` are 8 * 1024, ``1m`` is 1024 * 1024, a number is itself.

    Args:
        text: what was written.
        what: what it is the length of, for the refusal.

    Raises:
        ConfigError: not a whole number of tokens, at least 1.
    """
    said = text if isinstance(text, str) else repr(text)
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kKmM]?)\s*", said)
    tokens = 0.0 if match is None else float(match[1]) * {"": 1, "k": 1024, "m": 1024**2}[match[2].lower()]
    if isinstance(text, bool) or not 1 <= tokens <= LONGEST or tokens != int(tokens):
        expected = "expected a whole number, at least 1 and at most 2**40, such as 4096 or 8k (8 x 1024)"
        raise ConfigError(f"{what} is {shown(said, quoted=not said)}, {expected}")
    return int(tokens)


def size(count: float) -> str:
    """Three digits and a unit of ten: ``16.1 GB``."""
    for unit in ("TB", "GB", "MB"):
        if abs(count) >= 0.9995 * UNITS[unit.lower()]:
            scaled = count / UNITS[unit.lower()]
            return f"{scaled:,.0f} {unit}" if abs(scaled) >= 99.95 else f"{scaled:.3g} {unit}"
    return f"{count / 1e3:.3g} KB"


def count(number: float) -> str:
    """Three digits and a word: ``8.03 billion``."""
    for word, unit in (("trillion", 1e12), ("billion", 1e9), ("million", 1e6), ("thousand", 1e3)):
        if number >= unit:
            return f"{number / unit:.3g} {word}"
    return f"{number:.0f}"


# ------------------------------------------------------------------------------------------------------------
# Checks of single configuration values: each refuses in one sentence what cannot be used.


def whole(name: str, value: Any, least: int, most: int = LARGEST) -> None:
    """``value`` is an int (not a bool) from ``least`` to ``most``, or ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} is {shown(value)}; expected a whole number of at least {least}")
    if value > most:
        raise ConfigError(f"{name} is {shown(value)}; expected a whole number of at most {most}")


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
    ok = isinstance(value, (int, float)) and not isinstance(value, bool)
    ok = ok and abs(value) <= sys.float_info.max  # also of whole numbers, of which some are no float
    ok = (
        ok
        and (value > least if open_low else value >= least)
        and (value < most if open_high else value <= most)
    )
    if not ok:
        raise ConfigError(
            f"{name} is {shown(value)}; expected a number in {'(' if open_low else '['}{least},"
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
