"""``revstep bench keep``: bytes and time over the number of layers whose graphs are kept."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

NAME = "keep"
HELP = "a training step with more or fewer layers kept"
EXAMPLES = """
revstep bench keep --json keep.json
"""
ROUNDS = 15
OPTIONS = _bench_trunk.OPTIONS


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..bench import TrunkCase, run_keep

    result = run_keep(TrunkCase(**options), settings.rounds, settings.memory)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    return [_bench_trunk.steps_table(result, ("plain",))]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from revstep.sizes import size

    found = []
    for goal in result["goals"]:
        values = ", ".join(f"{v:.3f}" if isinstance(v, float) else size(v) for v in goal["values"])
        found.append((goal["what"], values, f"1 within {goal['goal']:.0%}" if "goal" in goal else "monotone", "met" if goal["met"] else "NOT met"))
    return found
