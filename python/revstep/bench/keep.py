"""The step of a reversible trunk that keeps the graphs of its last k layers, from k = 0 to all of them, beside the plain step: bytes and time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from ..lm.trunk import ResidualStack
from ..plan.meter import Meter
from ..schemes import make
from ..stack import ReversibleStack
from .runner import environment
from .trunk import TrunkCase, blocks_of, timed, train_step

#: keep = all layers against the plain step, either way.
END = 0.03


def depths(layers: int) -> list[int]:
    """0, 1, L/4, L/2, L, each once."""
    return sorted({0, min(1, layers), layers // 4, layers // 2, layers})


def _trunks(case: TrunkCase) -> dict[str, Callable[[Tensor], Tensor]]:
    blocks = blocks_of(case)
    stacks = {f"keep={k}": ReversibleStack(blocks, make(case.scheme), keep=k) for k in depths(case.layers)}
    return {"plain": ResidualStack(blocks), **stacks}


def run_keep(case: TrunkCase, rounds: int = 15) -> dict:
    """Measure one case: ``{"case", "environment", "bytes", "goals", "measurements"}``, ready for JSON.

    ``bytes``: of each step, ``kept`` (alive when the forward pass is over and was not before: what waits for backward, and the output) and
    ``peak`` (the largest above what was alive before, parameters' gradients included), counted operation by operation in an untimed step.
    """
    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    trunks, counted = _trunks(case), {}
    for name, trunk in trunks.items():
        for parameter in trunk.parameters():  # each step makes its own gradients
            parameter.grad = None
        with Meter(real=True) as meter:
            for t in (x, *trunk.parameters()):
                meter.hold(t)
            before = meter.live
            train_step(trunk, x, case, lambda m=meter: m.mark("forward"))
        counted[name] = {"kept": meter.marks[0][1] - before, "peak": max(meter.marks[0][2], meter.peak) - before}
    rows = timed(trunks, case, rounds)
    times = {m["name"]: m["ratios"] for m in rows}
    return {
        "case": asdict(case), "environment": environment(case.device), "bytes": counted, "goals": _goals(case, counted, times),
        "measurements": rows,
    }  # fmt: skip


def _goals(case: TrunkCase, counted: dict, times: dict) -> list[dict]:
    names = [f"keep={k}" for k in depths(case.layers)]
    whole = names[-1]
    kept, spent = [counted[n]["kept"] for n in names], [times[n]["plain"] for n in names]
    ends = {"bytes kept": kept[-1] / counted["plain"]["kept"], "step time": spent[-1]}
    return [
        {"what": "bytes kept grow with keep", "values": kept, "met": kept == sorted(kept)},
        {"what": "step time falls with keep", "values": spent, "met": spent == sorted(spent, reverse=True)},
        *({"what": f"{name}, {whole} / plain", "values": [r], "goal": END, "met": abs(r - 1) <= END} for name, r in ends.items()),
    ]
