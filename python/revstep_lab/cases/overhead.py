"""``revstep bench overhead``: what a reversible stack costs beside its blocks: a training step against the
blocks' own forward, re-evaluation and backward, and against torch's checkpointing, and where the rest goes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from revstep.schemes import make
from revstep.stack import ReversibleStack

from ..bench.runner import environment, goal, measure
from . import trunk
from .trunk import TrunkCase, blocks_of, clock_of, in_autocast, one_step, synchronise

#: Of the step at most this much outside the blocks.
SHARE = 0.03
#: A stack's own nodes, and how the profiler names what the engine does around one.
_NODES = frozenset(node + part for node in ("Start", "Step", "Gate") for part in ("", "Backward"))
_ENGINE = "autograd::engine::evaluate_function: "


def blocks_alone(case: TrunkCase, blocks: list[nn.Module], x: Tensor) -> Callable[[], None]:
    """Every block three times over, by hand and without a step between them: forward with its graph let go,
    once more, and backward, each from ``x``.
    """
    g = torch.full_like(x, 1 / x.numel())

    def run() -> None:
        for block in blocks:
            with in_autocast(case):
                block(x.detach().requires_grad_())
        for block in reversed(blocks):
            with in_autocast(case):
                y = block(x.detach().requires_grad_())
            torch.autograd.backward(y, g.to(y.dtype))

    return run


def run_overhead(case: TrunkCase, rounds: int = 7) -> dict:
    """``{"case", "environment", "measurements", "share", "profile", "goals"}``, ready for JSON.

    ``share``: 1 minus the ratio of the two times, of a step with ``case.scheme`` in fixed point, rebuilding
    every layer. ``profile``: of one more step, seconds in each operator and node that is not a block's, under
    torch's profiler (which adds to short ones); ``beside``: all together over the step.
    """
    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    blocks = blocks_of(case)
    stack = ReversibleStack(blocks, make(case.scheme))

    def checkpointed(x: Tensor) -> Tensor:
        for block in blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return x

    variants = {
        "stack": one_step(case, stack, x),
        "blocks alone": blocks_alone(case, blocks, x),
        "torch checkpoint of every block": one_step(case, checkpointed, x),
    }
    rows = measure(variants, rounds, warmup=1, sync=synchronise(case), clock=clock_of(case))
    found = {m.name: m for m in rows}
    share = 1 - found["blocks alone"].ratios["stack"]
    parts, total = profiled(variants["stack"], case.device)
    beside = sum(part["seconds"] for part in parts) / total
    return {
        "case": asdict(case),
        "environment": environment(case.device),
        "measurements": [m.to_dict() for m in rows],
        "share": share,
        "profile": parts,
        "profile_seconds": total,
        "beside": beside,
        "goals": [
            goal("share of the step outside the blocks, measured", share, SHARE, False),
            goal("share of the step in the profile's parts", beside, SHARE, False),
        ],
    }


def profiled(step: Callable[[], None], device: str) -> tuple[list[dict], float]:
    """One step under the profiler: time by part of what is not a block's own, largest first, and of
    everything. A part's time is its own and its children's.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    with profile(activities=activities) as recorded:
        step()
    events = [e for e in recorded.events() if e.device_type == DeviceType.CPU]
    seconds: dict[str, list[float]] = {}
    for event in events:
        part = part_of(event)
        if part is not None and all(part_of(parent) is None for parent in _ancestors(event)):
            spent = event.device_time_total if device == "cuda" else event.cpu_time_total
            seconds.setdefault(part, []).append(spent / 1e6)
    total = sum(e.self_device_time_total if device == "cuda" else e.self_cpu_time_total for e in events) / 1e6
    parts = [{"part": name, "calls": len(times), "seconds": sum(times)} for name, times in seconds.items()]
    return sorted(parts, key=lambda part: -part["seconds"]), total


def _ancestors(event) -> list:
    found = []
    while event.cpu_parent is not None:
        event = event.cpu_parent
        found.append(event)
    return found


def part_of(event) -> str | None:
    """Name of the part of a stack that this event is, or None: a block's. Sums of gradients count where one
    of a stack's nodes gave a summand.
    """
    name, parent = event.name, event.cpu_parent
    if name in _NODES or name.startswith("revstep::"):
        return name
    engine = (
        parent is not None and parent.name.startswith(_ENGINE) and parent.name.removeprefix(_ENGINE) in _NODES
    )
    return "sums of gradients of states" if engine and name in ("aten::add", "aten::add_") else None


# ---- The case as ``revstep bench`` takes it: its name, its options, its tables and its goals ----

NAME = "overhead"
HELP = "a reversible step beside its blocks alone, and where the rest goes"
EXAMPLES = """
revstep bench overhead --json overhead.json
"""
ROUNDS = 7
_SIZE = {"layers": 12, "width": 768, "heads": 12, "batch": 4, "length": 1024}
OPTIONS: dict[str, tuple[dict, str]] = {
    **{name: option for name, option in trunk.OPTIONS.items() if name not in _SIZE},
    **{name: ({"type": int}, f"default {default}") for name, default in _SIZE.items()},
}


def run(options: dict[str, Any], settings: Any) -> dict:
    result = run_overhead(TrunkCase(**{**_SIZE, **options}), settings.rounds)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    total = result["profile_seconds"]
    parts = [
        (part["part"], str(part["calls"]), f"{part['seconds'] * 1e3:.2f}", f"{part['seconds'] / total:.2%}")
        for part in result["profile"]
    ]
    return [
        trunk.steps_table(result, ()),
        ("Parts of one profiled step", ("part", "calls", "ms", "of the step"), parts),
    ]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])
