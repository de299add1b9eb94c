"""``revstep bench price``: the training step in fixed point beside the same one in a float state, for every scheme."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

ROUNDS = 15
OPTIONS: dict[str, tuple[dict, str]] = {
    "schemes": ({"nargs": "+"}, "some of the schemes (default all)"),
    **{name: option for name, option in _bench_trunk.OPTIONS.items() if name != "scheme"},
}


def run(options: dict[str, Any], rounds: int) -> dict:
    from ...bench import TrunkCase, run_price
    from .. import output

    schemes = tuple(options.pop("schemes", ()))
    result = run_price(TrunkCase(**options), rounds, schemes)
    env = result["environment"]
    print(f"{env['device']}, {env['threads']} threads, torch {env['torch']}, {env['date']}, medians of {rounds} interleaved rounds\n")
    rows = [(row["scheme"], f"{row['fixed']['p50'] * 1e3:.1f}", f"{row['float']['p50'] * 1e3:.1f}", f"{row['ratio']:.3f}") for row in result["rows"]]
    print(output.table(("scheme", "fixed point, ms", "float state, ms", "ratio"), rows))
    print()
    output.print_goals(result["goals"])
    return result
