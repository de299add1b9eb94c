"""Arguments that several commands share, and their parsing. Values are checked by the parts that use them."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import ConfigError
from ..specs import SchemeSpec, StateSpec, parse_scheme, parse_state

__all__ = ["SchemeSpec", "StateSpec", "add_scheme", "add_state", "endings", "given", "loss_chunk", "parse_scheme", "parse_state"]

SCHEME_HELP = (
    "plain, checkpoint (plain, each block recomputed), or a reversible scheme with options: midpoint, blend:c=0.25, "
    "midpoint_blend:a=paper,seed=3, midpoint_blend:a=1/0.8/1.2 (a list, one number a layer), leapfrog, hamiltonian:h=0.5"
)
STATE_HELP = "how reversible schemes hold the hidden state: fixed32[:frac_bits], fixed64[:frac_bits] (exact), float32, float64 (not)"


def add_scheme(parser: argparse._ActionsContainer, default: str | None, note: str = "") -> None:
    """``--scheme NAME[:OPTION=VALUE,...]``."""
    parser.add_argument("--scheme", default=default, metavar="NAME[:OPTIONS]", help=SCHEME_HELP + note)


def add_state(parser: argparse._ActionsContainer, default: str | None, note: str = "") -> None:
    """``--state NAME[:FRAC_BITS]``."""
    parser.add_argument("--state", default=default, metavar="NAME[:BITS]", help=STATE_HELP + note)


def loss_chunk(text: str) -> int | str:
    """``auto`` or a number of rows.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    if text == "auto":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a number of rows") from None


def endings(text: str) -> tuple[str, ...]:
    """``py,.txt`` -> (".py", ".txt")."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return tuple(part if part.startswith(".") else f".{part}" for part in parts)


def given(args: argparse.Namespace, names: Any) -> dict[str, Any]:
    """Those of ``names`` that the user gave (their default being None).

    Raises:
        ConfigError: a name the parser does not have, which is a mistake in the command.
    """
    missing = [name for name in names if not hasattr(args, name)]
    if missing:
        raise ConfigError(f"the command has no option for {', '.join(missing)}; add it in add_arguments")
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
