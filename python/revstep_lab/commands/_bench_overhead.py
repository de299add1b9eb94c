"""``revstep bench overhead``: what a reversible stack costs beside its blocks."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

NAME = "overhead"
HELP = "a reversible step beside its blocks alone, and where the rest goes"
EXAMPLES = """
revstep bench overhead --json overhead.json
"""
ROUNDS = 7
_SIZE = {"layers": 12, "width": 768, "heads": 12, "batch": 4, "length": 1024}
OPTIONS: dict[str, tuple[dict, str]] = {
    **{name: option for name, option in _bench_trunk.OPTIONS.items() if name not in _SIZE},
    **{name: ({"type": int}, f"default {default}") for name, default in _SIZE.items()},
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..bench import TrunkCase, run_overhead

    result = run_overhead(TrunkCase(**{**_SIZE, **options}), settings.rounds)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    total = result["profile_seconds"]
    parts = [(part["part"], str(part["calls"]), f"{part['seconds'] * 1e3:.2f}", f"{part['seconds'] / total:.2%}") for part in result["profile"]]
    return [_bench_trunk.steps_table(result, ()), ("Parts of one profiled step", ("part", "calls", "ms", "of the step"), parts)]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..goals import rows

    return rows(result["goals"])
