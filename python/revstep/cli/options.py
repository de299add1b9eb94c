"""Arguments that several commands share, and their parsing. Values are checked by the parts that use them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import Any

from ..errors import ConfigError
from ..specs import SchemeSpec, StateSpec, parse_scheme, parse_state

__all__ = [
    "OF_AUTO", "SchemeSpec", "StateSpec", "add_auto", "add_keep", "add_scheme", "add_state", "check_auto", "endings", "given", "keep", "loss_chunk",
    "memory_budget", "parse_scheme", "parse_state",
]  # fmt: skip

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


#: Options that ``--scheme auto`` chooses by.
OF_AUTO = ("tolerance", "bits")


def add_auto(parser: argparse._ActionsContainer) -> None:
    """``--tolerance`` and ``--bits``."""
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="of auto: largest divergence from the original's next-token distribution, nats a token (default 0.004)"
    )
    parser.add_argument("--bits", type=float, metavar="N", help="of auto: mean carry bits of a layer to choose for, instead of the tolerances")


def check_auto(given: Iterable[str], scheme: str | None, names: Iterable[str] = OF_AUTO) -> None:
    """Raises ConfigError for one of ``names`` among the given options where the scheme (None: auto) is another."""
    of_auto = [name.replace("_", "-") for name in names if name in given]
    if of_auto and scheme not in (None, "auto"):
        raise ConfigError(f"--{of_auto[0]} goes with --scheme auto, which chooses by it, got --scheme {scheme}: drop one of them")


def loss_chunk(text: str) -> int | str:
    """``auto`` or a number of rows.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    return _auto_or_number(text, "rows")


def keep(text: str) -> int | str:
    """``auto`` or a number of layers.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    return _auto_or_number(text, "layers")


def _auto_or_number(text: str, of: str) -> int | str:
    try:
        return text if text == "auto" else int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither 'auto' nor a number of {of}") from None


def memory_budget(text: str) -> int | float:
    """A fraction (``0.5``, ``1.0``) or a size (``4GB``, ``4GiB``, bytes).

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    try:
        if "." in text and float(text) <= 1:
            return float(text)
    except ValueError:
        pass
    from ..plan.sizes import parse_bytes  # not before it is needed: with it comes torch

    try:
        return 0 if text == "0" else parse_bytes(text)
    except ConfigError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a fraction such as 0.5 nor a size such as 4GB or 4GiB") from None


def add_keep(parser: argparse._ActionsContainer) -> None:
    """``--keep``, ``--memory-budget`` and ``--save-ops``."""
    parser.add_argument(
        "--keep", type=keep, metavar="N", help="last layers whose graph is stored instead of rebuilt, or auto: what --memory-budget holds (default 0)"
    )
    parser.add_argument("--memory-budget", type=memory_budget, metavar="SIZE", help="with --keep auto: 4GB, 4GiB, bytes, or a fraction of what is free")
    parser.add_argument("--save-ops", choices=("attention",), help="keep attention's output and log-sum-exp instead of computing them twice")


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
