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
    rows = [(row["scheme"], f"{row['fixed']['p50'] * 1e3:.1f}", f"{row['float']['p50'] * 1e3:.1f}", f"{row['ratio']:.3f}") for row in result["rows"]]
    return [(_bench_trunk.title({**result["case"], "scheme": "as named"}), ("scheme", "fixed point, ms", "float state, ms", "ratio"), rows)]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from .. import output

    return output.verdicts(result["goals"])
