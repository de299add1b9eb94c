"""Numbers, files and folders as a command line gives them. Every option of every command whose type is
``int`` or ``float`` is read here: no number gets past that no part of the program could hold.
"""

from __future__ import annotations

import argparse
import math

from .._files import refuse_output
from .._values import LARGEST, shown


def register(parser: argparse.ArgumentParser) -> None:
    """Have the parser, and the groups of it, read ``type=int`` and ``type=float`` by these."""
    parser.register("type", int, whole)
    parser.register("type", float, finite)


def whole(text: str) -> int:
    """A whole number of 64 bits. Raises argparse.ArgumentTypeError."""
    try:
        value = int(text)
    except ValueError:  # also where it has thousands of digits
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number") from None
    if not -LARGEST <= value <= LARGEST:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} is out of range, expected at most {LARGEST} either way"
        )
    return value


def finite(text: str) -> float:
    """A number that is one, and not infinite. Raises argparse.ArgumentTypeError."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a number") from None
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a finite number")
    return value


def output_file(text: str) -> str:
    """The name of a file that can be written. Raises argparse.ArgumentTypeError, before anything is
    computed.
    """
    return _output(text, folder=False)


def output_folder(text: str) -> str:
    """The name of a folder that can be written or made. Raises argparse.ArgumentTypeError."""
    return _output(text, folder=True)


def _output(text: str, folder: bool) -> str:
    try:
        refuse_output(text, folder)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise argparse.ArgumentTypeError(f"cannot write {shown(text)}: {reason}") from None
    return text
