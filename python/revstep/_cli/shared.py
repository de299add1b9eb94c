"""What several commands print and write."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .._options import FLAGS, add_flags
from .._specs import SchemeSpec, StateSpec, parse_scheme, parse_state
from ..errors import ConfigError
from ..lm._files import write_atomic


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A plain text table with aligned columns."""
    widths = [max(len(str(row[i])) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def write_json(path: str, data: Any) -> None:
    """``data`` to ``path``, whole or not at all. Raises OSError as ``open`` does."""
    write_atomic(Path(path), (json.dumps(data, indent=1) + "\n").encode())


# ------------------------------------------------------------------------------------------------------------
# Arguments that several commands share, and their parsing. Values are checked by the parts that use them.

__all__ = [
    "FLAGS",
    "OF_AUTO",
    "OF_CONVERT",
    "SchemeSpec",
    "StateSpec",
    "add_auto",
    "add_flags",
    "add_scheme",
    "add_state",
    "check_auto",
    "endings",
    "given",
    "loss_chunk",
    "parse_scheme",
    "parse_state",
]

#: Options of a stack that a converted model takes.
OF_CONVERT = tuple(name for name in FLAGS if name != "readout")

SCHEME_HELP = (
    "plain, checkpoint (plain, each block recomputed), or a reversible scheme with options: midpoint,"
    " blend:c=0.25, midpoint_blend:a=paper,seed=3, midpoint_blend:a=1/0.8/1.2 (a list, one number a layer),"
    " leapfrog, hamiltonian:h=0.5"
)
STATE_HELP = (
    "how reversible schemes hold the hidden state: fixed32[:frac_bits], fixed64[:frac_bits] (exact), float32,"
    " float64 (not)"
)


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
        "--tolerance",
        type=float,
        metavar="X",
        help=(
            "of auto: largest divergence from the original's next-token distribution, nats a token (default"
            " 0.004)"
        ),
    )
    parser.add_argument(
        "--bits",
        type=float,
        metavar="N",
        help="of auto: mean carry bits of a layer to choose for, instead of the tolerances",
    )


def check_auto(given: Iterable[str], scheme: str | None, names: Iterable[str] = OF_AUTO) -> None:
    """Raises ConfigError for one of ``names`` among the given options where the scheme (None: auto) is
    another.
    """
    of_auto = [name.replace("_", "-") for name in names if name in given]
    if of_auto and scheme not in (None, "auto"):
        raise ConfigError(
            f"--{of_auto[0]} goes with --scheme auto, which chooses by it, got --scheme {scheme}: drop one of"
            " them"
        )


def loss_chunk(text: str) -> int | str:
    """``auto`` or a number of rows.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    try:
        return text if text == "auto" else int(text)
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
