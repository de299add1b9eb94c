"""``revstep bench price``: the training step in fixed point beside the same one in a float state, for every scheme."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

NAME = "price"
HELP = "a reversible step in fixed point beside the same one in a float state, for every scheme"
EXAMPLES = """
revstep bench price --schemes midpoint blend
"""
ROUNDS = 15
OPTIONS: dict[str, tuple[dict, str]] = {
    "schemes": ({"nargs": "+"}, "some of the schemes (default all)"),
    **{name: option for name, option in _bench_trunk.OPTIONS.items() if name != "scheme"},
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ...bench import TrunkCase, run_price

    schemes = tuple(options.pop("schemes", ()))
    result = run_price(TrunkCase(**options), settings.rounds, schemes)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    rows = [
        (m["name"], f"{m['p50'] * 1e3:.1f}", f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}", *(f"{r:.3f}" for r in m["ratios"].values()))
        for m in result["measurements"]
    ]
    return [(_bench_trunk.title({**result["case"], "scheme": "as named"}), ("step", "ms", "p20 to p80", "/ the scheme's other state"), rows)]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from .. import output

    return output.verdicts(result["goals"])
