"""The claims of the integration methods: a row a method and kind of equation, a column a property."""

from __future__ import annotations

import argparse
import math
import re
from typing import Any

from ._verify_outcome import Outcome, watched


def run_ode(args: argparse.Namespace) -> Outcome:
    """Measure the chosen rows. Raises ConfigError for unknown names."""
    from ..verify import ode

    rows = _select(args)
    names = list(dict.fromkeys(case.property for case in rows))
    pairs = list(dict.fromkeys((case.method, case.equation) for case in rows))
    print(f"integrators: {len(pairs)} combinations of method and equation, {len(names)} properties each\n")
    out = Outcome("integrators", ("method", "equation", *names))
    found: dict[tuple[str, str], dict[str, list]] = {pair: {} for pair in pairs}
    for case, results in watched(rows, ode.run_suite(rows)):
        out.add(
            f"{case.method} {case.equation} {case.property}",
            results,
            {"method": case.method, "equation": case.equation, "property": case.property},
        )
        found[case.method, case.equation][case.property] = results
    out.cells = {pair: {name: _cell(of[name]) for name in names} for pair, of in found.items()}
    out.rows = [(*pair, *(text for text, _, _ in cells.values())) for pair, cells in out.cells.items()]
    return out


def _select(args: argparse.Namespace) -> list:
    from revstep.errors import ConfigError

    from ..verify import ode

    every = ode.cases()
    rows = every
    for option in ("method", "equation", "property"):
        wanted, known = getattr(args, option), sorted({getattr(c, option) for c in every})
        unknown = sorted(set(wanted or ()) - set(known))
        if unknown:
            raise ConfigError(f"unknown {option} {', '.join(unknown)}, expected some of {', '.join(known)}")
        rows = [c for c in rows if not wanted or getattr(c, option) in wanted]
    if not rows:
        raise ConfigError("no method serves such an equation: leave out --method or --equation")
    return rows


#: What the sentences of order and drift begin with, for a table's cell.
_FIGURE = re.compile(r"slope (-?[\d.]+) on|(bounded|secular|not bounded)\b")


def _cell(results: list) -> tuple[str, str, str]:
    """Text, kind and words of a property's results: of slopes and drifts the one nearest to its bound, else
    the first claim.
    """
    words = "; ".join(str(r) for r in results)
    if not all(r.ok for r in results):
        return "FAILS", "bad", words
    claimed = [r for r in results if r.bound != float("inf")]
    shown = (
        max(claimed, key=lambda r: r.measured / r.bound if r.bound else r.measured) if claimed else results[0]
    )
    figure = _FIGURE.match(shown.why)
    if figure:
        text = figure[1] or (
            f"{figure[2]} {shown.measured:.0e}" if math.isfinite(shown.measured) else figure[2]
        )
    else:
        shown = (claimed or results)[0]
        text = (
            ("exact" if "error" in shown.unit else "holds")
            if shown.measured == 0.0
            else f"{shown.measured:.0e}"
        )
    return text, "good" if claimed else "", words


def section(out: Outcome) -> Any:
    """The page's section."""
    from ..verify.report import Cell, Section

    names = out.header[2:]
    table = [
        [Cell(method), Cell(equation), *(Cell(*cells[name]) for name in names)]
        for (method, equation), cells in out.cells.items()
    ]
    return Section(
        "Integrators",
        "Every method on every kind of equation it serves: first (y' = f), second (q'' = f), separable (q' ="
        " dT/dp, p' = -dV/dq). Green cells are claims that hold, with the measured figure (of order the"
        " fitted slope, of drift the change over a million steps, of gradients and the like the error); the"
        " others are measured where the method claims nothing. Pointing at a cell shows its sentence.",
        ("method", "equation", *names),
        table,
        details=out.details,
    )
