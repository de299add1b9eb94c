"""Tables of the guide pages, from docs/benchmarks/guides.json (written by docs/measure.py), between marks in
the pages.
"""

from __future__ import annotations

import json
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from methods import device_line, table

from revstep.ode import available

DOCS = Path(__file__).resolve().parent
MARK = re.compile(r"(<!-- figures: (\w+), from docs/measure\.py -->\n).*?(<!-- /figures -->)", re.S)


@lru_cache(maxsize=1)
def _record() -> dict[str, Any]:
    return json.loads((DOCS / "benchmarks" / "guides.json").read_text(encoding="utf-8"))


def _data(part: str) -> Any:
    return _record()[part]["data"]


def small(x: float | None) -> str:
    """Two digits, as a table shows them."""
    return "-" if x is None else "not finite" if not math.isfinite(x) else "0" if x == 0 else f"{x:.1e}"


def _work(equation: str) -> str:
    data, methods = _data("work"), available()
    rows = []
    for name, errors in sorted(
        data["errors"][equation].items(), key=lambda item: (max(item[1][1], 1e-13), item[1][0])
    ):
        c = methods[name].claims(equation)
        rows.append([f"`{name}`", str(c.order), str(c.evaluations), *map(small, errors)])
    return table(
        [
            "method",
            "order",
            "evaluations a step",
            *(f"error with {b:,} evaluations" for b in data["budgets"]),
        ],
        rows,
    )


def _decay() -> str:
    rows = [
        ["`" + name.replace(",", "`,", 1) + ("" if "," in name else "`"), *map(small, values)]
        for name, values in sorted(_data("work")["decay"].items(), key=lambda item: item[1][-1])
    ]
    return table(["method", "y at t = 10 (truth 4.5e-05)", "at 20 (2.1e-09)", "at 40 (4.2e-18)"], rows)


def _energy() -> str:
    data = _data("energy")
    rows = [
        [
            r["problem"],
            f"`{r['method']}`",
            "yes" if r["symplectic"] else "no",
            *map(small, r["change"]),
            f"{r['slope']:.1e} +- {r['slope_error']:.0e}",
        ]
        for r in data
    ]
    return table(
        [
            "problem",
            "method",
            "symplectic",
            *(f"{n:,} steps" for n in data[0]["steps"]),
            "slope a unit of time",
        ],
        rows,
    )


def _rounding() -> str:
    data = _data("rounding")
    rows = [
        [name, *map(small, s["energy"]), "bit for bit" if s["returned"] else f"off by {small(s['off'])}"]
        for name, s in data["states"].items()
    ]
    return table(
        ["state", *(f"energy error, {n:,} steps" for n in data["steps"]), "the start, when reversed"], rows
    )


def _floats() -> str:
    by_case: dict[tuple[str, str], list[dict]] = {}
    for r in _data("floats"):
        by_case.setdefault((r["field"], r["scheme"]), []).append(r)
    rows = []
    for (field, scheme), found in by_case.items():
        short = re.sub(r"0\.89999\d*", "0.9", scheme).replace(", a=1.0, b=1.0", "")
        at = found[1]
        rows.append(
            [
                field,
                f"`{short}`",
                *(small(r["factor"]) for r in found),
                *map(small, (at["expected"], at["float32"], at["bound"], at["expected bf16"], at["bf16"])),
            ]
        )
    usable = [
        r["float32"] / r["expected"]
        for found in by_case.values()
        for r in found
        if min(r["expected"], r["float32"]) < 0.1
    ]
    within = [sum(1 / k <= ratio <= k for ratio in usable) for k in (2, 10)]
    summary = (
        f"\n\nOf {len(_data('floats'))} cases (all of them, with 8, 32 and 128 layers), {len(usable)} leave"
        f" an error below 0.1; in {within[0]} of these (1) is right within a factor of 2, in {within[1]}"
        f" within 10, and the largest ratio of measured to expected is {max(usable):.1f}."
    )
    depths = [r["steps"] for r in next(iter(by_case.values()))]
    head = [
        "blocks",
        "scheme",
        *(f"A, {d} layers" for d in depths),
        "float32: A u",
        "measured",
        "formula",
        "bf16 blocks: at most",
        "measured",
    ]
    return table(head, rows) + summary


TABLES = {
    "work_second": ("work", lambda: _work("second")),
    "work_first": ("work", lambda: _work("first")),
    "decay": ("work", _decay),
    "energy": ("energy", _energy),
    "rounding": ("rounding", _rounding),
    "floats": ("floats", _floats),
}


def block(name: str) -> str:
    """The line of device, date, versions and command, and the table."""
    if name not in TABLES:
        raise ValueError(f"no table {name!r}, expected one of {', '.join(TABLES)}")
    part, make = TABLES[name]
    line = device_line(_record()[part]["environment"], f"python docs/measure.py {part}")
    return f"{line} ([all numbers](benchmarks/guides.json)).\n\n{make()}\n"


def renewed(text: str) -> str:
    """A page with its tables written again. Raises ValueError at a mark that is not closed or unknown."""
    if text.count("<!-- figures:") != len(MARK.findall(text)):
        raise ValueError(
            "a mark '<!-- figures: NAME, from docs/measure.py -->' needs its '<!-- /figures -->'"
        )
    return MARK.sub(lambda m: f"{m[1]}\n{block(m[2])}\n{m[3]}", text)


def pages() -> dict[Path, str]:
    """Every page of docs that has marks."""
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
    return {path: renewed(text) for path, text in texts.items() if "<!-- figures:" in text}
