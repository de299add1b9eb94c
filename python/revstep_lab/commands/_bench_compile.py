"""``revstep bench compile``: compiled blocks, plain and reversible, beside uncompiled ones."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

NAME = "compile"
HELP = "a training step with compiled blocks, and compiled whole"
EXAMPLES = """
revstep bench compile --json compile.json
"""
ROUNDS = 15
OPTIONS = _bench_trunk.OPTIONS


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..bench import TrunkCase, run_compiled

    result = run_compiled(TrunkCase(**options), settings.rounds, settings.memory)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    graphs = result["graphs"]
    facts = [(f"{graphs['before']} before the rounds, {graphs['during']} in them", "yes" if result["exact"] else "NO")]
    return [_bench_trunk.steps_table(result, ("plain", "reversible", "plain, compiled")), ("Graphs", ("compiled", "states rebuilt exactly"), facts)]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..goals import rows

    return rows(result["goals"])
