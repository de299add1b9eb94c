"""``revstep bench``: a training step of a transformer trunk, plain, checkpointed and reversible, side by side."""

from __future__ import annotations

from typing import Any

ROUNDS = 15
_SIZES = {"layers": 12, "width": 384, "heads": 6, "batch": 4, "length": 256}
#: Option -> (settings for argparse, help); the defaults are TrunkCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "scheme": ({}, "a reversible scheme (default midpoint)"),
    "dtype": ({}, "float32, or bfloat16 for autocast (default float32)"),
    **{name: ({"type": int}, f"default {default}") for name, default in _SIZES.items()},
    "device": ({}, "cpu or cuda (default cpu)"),
}


def run(options: dict[str, Any], rounds: int) -> dict:
    from ...bench import TrunkCase, run_trunk
    from .. import output

    result = run_trunk(TrunkCase(**options), rounds)
    env = result["environment"]
    print(f"{env['device']}, {env['threads']} threads, torch {env['torch']}, {env['date']}, medians of {rounds} interleaved rounds\n")
    rows = [
        (
            m["name"],
            f"{m['p50'] * 1e3:.1f}",
            f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}",
            f"{m['ratios'].get('plain', 1.0):.3f}",
            f"{m['ratios'].get('checkpoint', 1.0):.3f}",
        )
        for m in result["measurements"]
    ]
    print(output.table(("step", "ms", "p20 to p80", "/ plain", "/ checkpoint"), rows))
    print()
    for goal in result["goals"]:
        print(f"{goal['of']} / {goal['to']}: {goal['ratio']:.3f}, goal at most {goal['goal']:.2f}: {'met' if goal['met'] else 'NOT met'}")
    return result
