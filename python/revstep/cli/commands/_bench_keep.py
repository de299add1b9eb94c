"""``revstep bench keep``: bytes and time over the number of layers whose graphs are kept."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

ROUNDS = 15
OPTIONS = _bench_trunk.OPTIONS


def run(options: dict[str, Any], rounds: int) -> dict:
    from ...bench import TrunkCase, run_keep
    from ...plan.sizes import size
    from .. import output

    result = run_keep(TrunkCase(**options), rounds)
    env = result["environment"]
    print(f"{env['device']}, {env['threads']} threads, torch {env['torch']}, {env['date']}, medians of {rounds} interleaved rounds\n")
    rows = [
        (m["name"], size(result["bytes"][m["name"]]["kept"]), size(result["bytes"][m["name"]]["peak"]), f"{m['p50'] * 1e3:.1f}",
         f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}", f"{m['ratios'].get('plain', 1.0):.3f}")
        for m in result["measurements"]
    ]  # fmt: skip
    print(output.table(("step", "kept", "peak", "ms", "p20 to p80", "/ plain"), rows))
    print()
    for goal in result["goals"]:
        bound = f", goal 1 within {goal['goal']:.0%}" if "goal" in goal else ""
        values = ", ".join(f"{v:.3f}" if isinstance(v, float) else size(v) for v in goal["values"])
        print(f"{goal['what']}: {values}{bound}: {'met' if goal['met'] else 'NOT met'}")
    return result
