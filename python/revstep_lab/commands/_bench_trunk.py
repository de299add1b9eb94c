"""``revstep bench``: a training step of a transformer trunk, plain, checkpointed and reversible, side by side."""

from __future__ import annotations

from typing import Any

NAME = "trunk"
HELP = "a training step, plain, checkpointed and reversible"
EXAMPLES = """
revstep bench --dtype bfloat16 --scheme blend --rounds 31 --json step.json
revstep bench --device cuda --layers 24 --width 1024 --heads 16 --length 1024 --csv figures.csv
"""
ROUNDS = 15
_SIZES = {"layers": 12, "width": 384, "heads": 6, "batch": 4, "length": 256}
#: Option -> (settings for argparse, help); the defaults are TrunkCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "scheme": ({}, "a reversible scheme (default midpoint)"),
    "dtype": ({}, "float32, or bfloat16 for autocast (default float32)"),
    **{name: ({"type": int}, f"default {default}") for name, default in _SIZES.items()},
    "device": ({}, "cpu or cuda (default cpu)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..bench import TrunkCase, run_trunk

    result = run_trunk(TrunkCase(**options), settings.rounds, settings.memory)
    settings.show(result)
    return result


def title(case: dict) -> str:
    return (
        f"{case['layers']} blocks, width {case['width']}, {case['heads']} heads, {case['batch']} x {case['length']}, {case['dtype']}, scheme {case['scheme']}"
    )


def steps_table(result: dict, against: tuple[str, ...], more: tuple[tuple[str, Any], ...] = ()) -> tuple[str, tuple[str, ...], list[tuple[str, ...]]]:
    """Times, ratios to the rows ``against``, memory where it was measured, and ``more`` columns (header, text of a row)."""
    from revstep.sizes import size

    memory = all("memory" in m for m in result["measurements"])
    rows = []
    for m in result["measurements"]:
        cells = [m["name"], f"{m['p50'] * 1e3:.1f}", f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}", *(f"{m['ratios'].get(o, 1.0):.3f}" for o in against)]
        if memory:
            cells += ["-" if m["memory"][k] is None else size(m["memory"][k]) for k in ("kept", "peak", "process")]
        rows.append((*cells, *(text(m) for _, text in more)))
    header = ("step", "ms", "p20 to p80", *(f"/ {o}" for o in against), *(("kept", "peak", "process") if memory else ()), *(name for name, _ in more))
    return title(result["case"]), header, rows


def tables(result: dict) -> list:
    return [steps_table(result, ("plain", "checkpoint"))]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..goals import rows

    return rows(result["goals"])
