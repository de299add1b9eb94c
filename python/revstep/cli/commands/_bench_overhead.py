"""``revstep bench overhead``: what a reversible stack costs beside its blocks."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

ROUNDS = 7
_SIZE = {"layers": 12, "width": 768, "heads": 12, "batch": 4, "length": 1024}
OPTIONS: dict[str, tuple[dict, str]] = {
    **{name: option for name, option in _bench_trunk.OPTIONS.items() if name not in _SIZE},
    **{name: ({"type": int}, f"default {default}") for name, default in _SIZE.items()},
}


def run(options: dict[str, Any], rounds: int) -> dict:
    from ...bench import TrunkCase, run_overhead
    from .. import output

    result = run_overhead(TrunkCase(**{**_SIZE, **options}), rounds)
    env = result["environment"]
    print(f"{env['device']}, {env['threads']} threads, torch {env['torch']}, {env['date']}, medians of {rounds} interleaved rounds\n")
    rows = [(m["name"], f"{m['p50'] * 1e3:.1f}", f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}") for m in result["measurements"]]
    print(output.table(("", "ms", "p20 to p80"), rows))
    print()
    total = result["profile_seconds"]
    parts = [(part["part"], str(part["calls"]), f"{part['seconds'] * 1e3:.2f}", f"{part['seconds'] / total:.2%}") for part in result["profile"]]
    print(output.table(("part of one profiled step", "calls", "ms", "of the step"), parts))
    print()
    output.print_goals(result["goals"])
    return result
