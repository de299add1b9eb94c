"""``revstep bench keep``: bytes and time of the step of a reversible trunk that keeps the graphs of its last
k layers, from k = 0 to all of them, beside the plain step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from torch import Tensor

from revstep.lm._language_model import ResidualStack
from revstep.schemes import make
from revstep.stack import ReversibleStack

from ..bench.peaks import Step, in_children
from ..bench.runner import environment
from . import trunk
from .trunk import TrunkCase, blocks_of, in_steps, timed

#: keep = all layers against the plain step, either way.
END = 0.03


def depths(layers: int) -> list[int]:
    """0, 1, L/4, L/2, L, each once."""
    return sorted({0, min(1, layers), layers // 4, layers // 2, layers})


def _trunks(case: TrunkCase) -> dict[str, Callable[[Tensor], Tensor]]:
    blocks = blocks_of(case)
    stacks = {f"keep={k}": ReversibleStack(blocks, make(case.scheme), keep=k) for k in depths(case.layers)}
    return {"plain": ResidualStack(blocks), **stacks}


def steps(case: TrunkCase, name: str) -> tuple[Step, Step, Callable[[], None]]:
    """The steps of a row, for :func:`..bench.peaks.in_children`."""
    trunks = _trunks(case)
    return in_steps(trunks[name], trunks["plain"].parameters(), case)


def run_keep(case: TrunkCase, rounds: int = 15, memory: bool = True) -> dict:
    """Measure one case: ``{"case", "environment", "goals", "measurements"}``, ready for JSON; with ``memory``
    each measurement has what :func:`..bench.peaks.in_children` found.
    """
    trunks = _trunks(case)
    rows = timed(trunks, case, rounds)
    found = in_children(steps, case, list(trunks)) if memory else {}
    if memory:
        rows = [{**row, "memory": found[row["name"]]} for row in rows]
    times = {row["name"]: row["ratios"] for row in rows}
    return {
        "case": asdict(case),
        "environment": environment(case.device),
        "goals": _goals(case, found, times),
        "measurements": rows,
    }


def _goals(case: TrunkCase, found: dict, times: dict) -> list[dict]:
    names = [f"keep={k}" for k in depths(case.layers)]
    whole = names[-1]
    spent = [times[n]["plain"] for n in names]
    goals, ends = (
        [{"what": "step time falls with keep", "values": spent, "met": spent == sorted(spent, reverse=True)}],
        {"step time": spent[-1]},
    )
    if found:
        kept = [found[n]["kept"] for n in names]
        goals.append({"what": "bytes kept grow with keep", "values": kept, "met": kept == sorted(kept)})
        ends["bytes kept"] = kept[-1] / found["plain"]["kept"]
    return goals + [
        {"what": f"{name}, {whole} / plain", "values": [r], "goal": END, "met": abs(r - 1) <= END}
        for name, r in ends.items()
    ]


# ---- The case as ``revstep bench`` takes it: its name, its options, its tables and its goals ----

NAME = "keep"
HELP = "a training step with more or fewer layers kept"
EXAMPLES = """
revstep bench keep --json keep.json
"""
ROUNDS = 15
OPTIONS = trunk.OPTIONS


def run(options: dict[str, Any], settings: Any) -> dict:
    result = run_keep(TrunkCase(**options), settings.rounds, settings.memory)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    return [trunk.steps_table(result, ("plain",))]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from revstep._values import size

    found = []
    for goal in result["goals"]:
        values = ", ".join(f"{v:.3f}" if isinstance(v, float) else size(v) for v in goal["values"])
        found.append(
            (
                goal["what"],
                values,
                f"1 within {goal['goal']:.0%}" if "goal" in goal else "monotone",
                "met" if goal["met"] else "NOT met",
            )
        )
    return found
