"""``revstep bench compile``: compiled blocks, plain and reversible, beside uncompiled ones."""

from __future__ import annotations

from typing import Any

from . import _bench_trunk

ROUNDS = 15
OPTIONS = _bench_trunk.OPTIONS


def run(options: dict[str, Any], rounds: int) -> dict:
    from ...bench import TrunkCase, run_compiled
    from .. import output

    result = run_compiled(TrunkCase(**options), rounds)
    env = result["environment"]
    print(f"{env['device']}, {env['threads']} threads, torch {env['torch']}, {env['date']}, medians of {rounds} interleaved rounds\n")
    rows = [
        (m["name"], f"{m['p50'] * 1e3:.1f}", f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}", f"{m['ratios'].get('plain', 1.0):.3f}",
         f"{m['ratios'].get('reversible', 1.0):.3f}", f"{m['ratios'].get('plain, compiled', 1.0):.3f}")
        for m in result["measurements"]
    ]  # fmt: skip
    print(output.table(("step", "ms", "p20 to p80", "/ plain", "/ reversible", "/ plain, compiled"), rows))
    graphs = result["graphs"]
    print(f"\n{graphs['before']} graphs compiled before the rounds, {graphs['during']} in them; states rebuilt exactly: {'yes' if result['exact'] else 'NO'}")
    for goal in result["goals"]:
        print(f"{goal['what']}: {goal['value']:.3f}, goal at most {goal['goal']:.2f}: {'met' if goal['met'] else 'NOT met'}")
    return result
