"""``revstep bench price``: fixed point beside a float state, checks on and off, this build beside another."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

NAME = "price"
HELP = "a step in fixed point beside one in a float state, for every scheme, and what the checks take"
EXAMPLES = """
revstep bench price --schemes midpoint blend
revstep bench price --parts checks --dtype bfloat16 --rounds 25
"""
ROUNDS = 15
OPTIONS: dict[str, tuple[dict, str]] = {
    "schemes": ({"nargs": "+"}, "some of the schemes (default all); the first is that of the checks"),
    "parts": ({"nargs": "+", "metavar": "PART"}, "some of states, checks (default all)"),
    "against": ({"metavar": "PYTHON"}, "also time the step of the revstep of this other Python"),
    **{name: option for name, option in _bench_trunk.OPTIONS.items() if name != "scheme"},
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..bench import TrunkCase, run_price

    lists = {name: tuple(options.pop(name)) for name in ("schemes", "parts") if name in options}
    against = options.pop("against", None)
    result = run_price(TrunkCase(**options), settings.rounds, against=against, **lists)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    found = []
    if result["measurements"]:
        header = ("step", "ms", "p20 to p80", "/ the scheme's other state")
        rows = [(*_times(m), *(f"{r:.3f}" for r in m["ratios"].values())) for m in result["measurements"]]
        found.append((_bench_trunk.title({**result["case"], "scheme": "as named"}), header, rows))
    for part, first in (("checks", "checks=False"), ("against", "the other build")):
        if part in result:
            found.append(_beside(result, part, first))
    return found


def _times(m: dict) -> tuple[str, str, str]:
    return m["name"], f"{m['p50'] * 1e3:.1f}", f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}"


def _beside(result: dict, part: str, first: str) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """The table of a part whose rows stand beside one of them."""
    title = _bench_trunk.title({**result["case"], "scheme": result[part]["scheme"]})
    rows = [(*_times(m), f"{m['ratios'].get(first, 1.0):.3f}") for m in result[part]["measurements"]]
    builds = result[part].get("builds", {})
    said = "; ".join(f"{name}: revstep {b['revstep']}, torch {b['torch']}" for name, b in builds.items())
    return title + (f" ({said})" if said else ""), ("step", "ms", "p20 to p80", f"/ {first}"), rows


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..goals import rows

    parts = [result, *(result[part] for part in ("checks", "against") if part in result)]
    return rows([g for part in parts for g in part["goals"]])
