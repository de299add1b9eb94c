"""The claims of reversible stacks: rows of scheme, state format and block dtype."""

from __future__ import annotations

import argparse
from typing import Any

from ._verify_outcome import Outcome, error_cell, watched

HEADER = ("scheme", "state", "block", "reconstruction", "gradients", "claims hold")


def run_networks(args: argparse.Namespace) -> Outcome:
    """Measure the chosen rows. Raises ConfigError for unknown names."""
    from ..verify import run_suite

    rows = _select(args)
    print(
        f"stacks: {len(rows)} combinations of scheme, state and block dtype (float32+bf16: float32 blocks"
        " under bfloat16 autocast)\n"
    )
    out = Outcome("reversible stacks", HEADER)
    for case, results in watched(rows, run_suite(rows)):
        key = (case.scheme, case.state, case.dtype)
        out.add(" ".join(key), results, {"scheme": case.scheme, "state": case.state, "dtype": case.dtype})
        held = f"{sum(r.ok for r in results)} of {len(results)}"
        out.rows.append(
            (*key, _worst(results, "rebuilt", "reconstruction"), _worst(results, "gradient"), held)
        )
    return out


def _select(args: argparse.Namespace) -> list:
    from revstep.errors import ConfigError

    from ..verify import cases

    rows = cases()
    for field in ("scheme", "state", "dtype"):
        wanted, known = getattr(args, field), sorted({getattr(c, field) for c in rows})
        unknown = sorted(set(wanted or ()) - set(known))
        if unknown:
            raise ConfigError(f"unknown {field} {', '.join(unknown)}, expected some of {', '.join(known)}")
        rows = [c for c in rows if not wanted or getattr(c, field) in wanted]
    return rows


def _worst(results: list, *words: str) -> str:
    return error_cell([r for r in results if any(word in r.claim for word in words)])


def section(out: Outcome) -> Any:
    """The page's section: a row a scheme and state, a column a block dtype."""
    from ..verify.report import Cell, Section

    dtypes = list(dict.fromkeys(row[2] for row in out.rows))
    cells: dict[tuple[str, str], dict[str, tuple]] = {}
    for row in out.rows:
        cells.setdefault(row[:2], {})[row[2]] = row
    table = [
        [Cell(scheme), Cell(state), *(_cell(Cell, found.get(d)) for d in dtypes)]
        for (scheme, state), found in cells.items()
    ]
    return Section(
        "Reversible stacks",
        "Every registered scheme, state format and block dtype: compiled kernels against the reference, one"
        " step undone, values out of range flagged, every state rebuilt, gradients against stored autograd,"
        " one flipped bit found. A cell says how far the rebuilt states of a seven-layer stack are from the"
        " computed ones; exact means bit for bit, and so are the gradients. float32+bf16: float32 blocks"
        " under bfloat16 autocast.",
        ("scheme", "state", *dtypes),
        table,
        details=out.details,
    )


def _cell(make: Any, row: tuple | None) -> Any:
    if row is None:
        return make("not run", "none")
    reconstruction, gradients, held = row[3:]
    if len(set(held.split(" of "))) > 1:
        return make(f"FAILS ({held} hold)", "bad", f"reconstruction {reconstruction}, gradients {gradients}")
    return make(
        reconstruction,
        "good" if reconstruction == "exact" else "",
        f"gradients {gradients}; {held} claims hold",
    )
