"""One training step, plain, checkpointed and reversible, of one model and rows: what it holds, its time."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

from torch import Tensor, nn

from revstep.hf.finetune import as_plain, checkpointed
from revstep.hf.loss import chunk_loss, unchunk_loss

from ...bench.peaks import by_allocator

WAYS = ("plain", "checkpointed", "reversible")
#: Timed steps of each way, in turn, after one whose bytes are counted, which warms up.
ROUNDS = 2


def measure(
    model: nn.Module,
    rows: Tensor,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, dict[str, float]]:
    """``{way: {"peak", "kept", "seconds"}}`` of forward and backward pass; all three have the loss in chunks.

    ``peak`` and ``kept`` are bytes of torch's allocator above what was there before: weights are in neither.

    Args:
        model: converted, with adapters. It is as it was, afterwards.
        rows: token ids of a step (B, T).
        say: gets a line for each way.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would write lines of its own
    training = model.training
    chunk_loss(model.train())
    found: dict[str, dict[str, float]] = {}
    try:
        for way in WAYS:
            with _run_as(model, way):
                found[way] = dict(by_allocator(lambda between: _step(model, rows, between)))
            say(f"  {way:14} {found[way]['peak'] / 1e6:8,.0f} MB at its peak")
        seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        for way in WAYS * ROUNDS:
            with _run_as(model, way):
                began = time.perf_counter()
                _step(model, rows, lambda: None)
                seconds[way].append(time.perf_counter() - began)
        for way in WAYS:
            found[way]["seconds"] = statistics.median(seconds[way])
    finally:
        unchunk_loss(model)
        model.train(training)
    return found


@contextmanager
def _run_as(model: nn.Module, way: str) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(nullcontext() if way == "reversible" else as_plain(model))
        stack.enter_context(checkpointed(model, way == "checkpointed"))
        yield


def _step(model: nn.Module, rows: Tensor, between: Callable[[], Any]) -> None:
    loss = model(input_ids=rows, labels=rows, use_cache=False).loss
    between()
    loss.backward()
    model.zero_grad(set_to_none=True)
