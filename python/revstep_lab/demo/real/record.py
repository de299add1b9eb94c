"""The picture: the loss on its way down with the four that count, and what a step holds each way."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from revstep.hf._finetune import checkpointed
from revstep.hf._four_losses import as_plain, four_losses
from revstep.hf._loss import chunk_loss, unchunk_loss

from ...bench.peaks import by_allocator
from ...drawing import INK, PALETTE, SOFT, figure, label_ends, save

WORDS = {
    "plain": "plain, before",
    "converted": "converted",
    "trained": "as trained",
    "deployed": "deployed, plain",
}


def draw(path: Path, document: dict[str, Any]) -> None:
    """Write the picture of a run's document."""
    title = f"{document['model']} fine-tuned reversibly, deployed as the plain model"
    where = document["environment"]
    what = f"LoRA on {document['text']}; {document['steps']} steps"
    subtitle = f"{what}; {where['device']}, torch {where['torch']}, {where['date']}"
    fig, (left, right) = figure(2, 12.4, 4.4, 1.9, title, subtitle)
    _losses(left, document)
    _memory(right, document["memory"])
    save(fig, path)


def _losses(ax: Any, document: dict[str, Any]) -> None:
    losses, found = document["training_loss"], document["losses"]
    window = max(1, len(losses) // 10)
    smooth = [float(np.mean(losses[max(0, i + 1 - window) : i + 1])) for i in range(len(losses))]
    steps = np.arange(1, len(losses) + 1)
    ax.plot(steps, losses, color=SOFT, linewidth=0.7, alpha=0.5)
    ax.plot(steps, smooth, color=INK, linewidth=1.8)
    ends = []
    for (name, words), colour in zip(WORDS.items(), PALETTE):
        at = 0 if name in ("plain", "converted") else len(losses)
        ax.plot([at], [found[name]], marker="o", color=colour, zorder=4)
        ends.append((at, found[name], f"{words}: {found[name]:.4f}", colour))
    ax.set_xlabel("step", color=INK, fontsize=9)
    ax.set_ylabel("loss, nats a token", color=INK, fontsize=9)
    ax.set_title("training loss, and held-out losses as dots", fontsize=9.5, color=INK, loc="left")
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    label_ends(ax, ends, size=8.5)


def _memory(ax: Any, memory: dict[str, Any]) -> None:
    names = list(memory)
    peaks = [memory[name]["peak"] / 1e6 for name in names]
    ax.bar(range(len(names)), peaks, width=0.55, color=[SOFT, PALETTE[4], PALETTE[0]])
    for i, (name, peak) in enumerate(zip(names, peaks)):
        ax.text(
            i,
            peak,
            f"{peak:,.0f} MB\n{memory[name]['seconds']:.1f} s",
            ha="center",
            va="bottom",
            fontsize=9,
            color=INK,
        )
    ax.set_xticks(range(len(names)), names)
    ax.set_ylim(0, 1.2 * max(peaks))
    ax.set_ylabel("peak of one step above the weights, MB", color=INK, fontsize=9)
    ax.set_title("memory of one training step", fontsize=9.5, color=INK, loc="left")


# ------------------------------------------------------------------------------------------------------------
# One training step, plain, checkpointed and reversible, of one model and rows: what it holds, its time.

WAYS = ("plain", "checkpointed", "reversible")
#: Timed steps of each way, in turn, after one whose bytes are counted, which warms up.
ROUNDS = 2


def measure(
    model: nn.Module, rows: Tensor, say: Callable[[str], None] = lambda line: None
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


# ---- What came of a run, in words and numbers ----


def memory_table(memory: dict[str, Any]) -> str:
    """Peaks and times of a step, each beside plain's."""
    plain = memory["plain"]
    lines = ["one training step    peak above the weights    time"]
    for way, found in memory.items():
        less = "" if way == "plain" else f"  {plain['peak'] / found['peak']:.1f} times less"
        slower = "" if way == "plain" else f"  {found['seconds'] / plain['seconds']:.2f} x plain"
        lines.append(f"  {way:16} {found['peak'] / 1e6:10,.0f} MB{less:16} {found['seconds']:8.2f} s{slower}")
    return "\n".join(lines)


def summary(document: dict[str, Any]) -> str:
    """All of it for a terminal, the verdict first."""
    sample = document["sample"]
    return "\n\n".join(
        [
            verdict(document),
            four_losses(document["losses"]),
            memory_table(document["memory"]),
            f"before: {sample['before']!r}\nafter:  {sample['after']!r}",
        ]
    )


def verdict(document: dict[str, Any]) -> str:
    """One sentence on what held and what did not."""
    losses = document["losses"]
    mb = {way: f"{found['peak'] / 1e6:,.0f}" for way, found in document["memory"].items()}
    apart = losses["deployed"] / losses["trained"] - 1
    if not document["exact"]:
        return f"NOT everything held: {document['states']}; please report it with {document['file']}"
    return (
        f"{document['model']} learned {document['text']} in {document['steps']} steps: every one of the"
        f" {document['states_rebuilt']:,} hidden states that backward rebuilt has the bits of the forward"
        f" pass, a step held {mb['reversible']} MB instead of {mb['plain']} (checkpointed"
        f" {mb['checkpointed']}), and deployed as the plain model its loss is {apart:+.2%} from that as"
        " trained"
    )
