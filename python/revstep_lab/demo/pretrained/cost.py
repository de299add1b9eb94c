"""Seconds and bytes of one step of every method, side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from torch import nn

from revstep.hf.finetune import checkpointed
from revstep.hf.loss import chunk_loss

from ...bench.peaks import by_allocator
from ...bench.runner import measure
from .bases import Bases
from .case import METHODS, PretrainedCase


def measured(
    bases: Bases, adapted: Callable[[nn.Module, PretrainedCase, int], nn.Module], rounds: int, say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """``{method: {"p20", "p50", "p80", "ratios", "kept", "peak"}}`` of a forward and a backward pass.

    All have the loss in chunks. The optimiser's step, the same for every method, is in neither; ``kept`` and ``peak`` are bytes above the
    weights. Nothing is distilled for it: other weights take the same time and bytes.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would write lines of its own
    case, rows = bases.case, bases.timed_rows
    made = {name: chunk_loss(adapted(_begun(bases, name), case, 0).train()) for name in case.methods}

    def step(name: str, between: Callable[[], None] = lambda: None) -> None:
        model = made[name]
        with checkpointed(model, METHODS[name].checkpointing):
            loss = model(input_ids=rows, labels=rows, use_cache=False).loss
            between()
            loss.backward()
        model.zero_grad(set_to_none=True)

    found: dict[str, dict[str, Any]] = {}
    for name in case.methods:
        found[name] = dict(by_allocator(lambda between, name=name: step(name, between)))
        say(f"a step of {case.timed_batch} x {case.timed_context} tokens, {name}: {found[name]['peak'] / 1e6:,.0f} MB at its peak")
    clock = time.process_time if case.threads == 1 else time.perf_counter
    timed = measure({name: lambda name=name: step(name) for name in case.methods}, rounds, warmup=1, clock=clock)
    for row in timed:
        found[row.name].update(row.to_dict())
    return found


def _begun(bases: Bases, name: str) -> nn.Module:
    return bases.converted(name) if METHODS[name].distilled else bases.load(name)
