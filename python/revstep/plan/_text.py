"""A plan as text: its heading, its table, and the sentence at its end on what reversible training saves here
and which command does it.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from .._values import count, size
from ._choice import Point, fastest, nothing_fits

if TYPE_CHECKING:
    from ._planner import Plan
    from ._rows import Row


def advice(plan: Plan, model: str = "MODEL") -> str:
    """One sentence for a plan in which something fits.

    The rows compared are those with the loss in chunks, where there are such. Where checkpointing takes no
    more and no smaller a batch, the sentence says so and the command is checkpointing's.

    Args:
        plan: the plan.
        model: what ``revstep finetune`` is to be given.
    """
    chunked = plan.no_chunk is None
    plain, check, rev = (plan.row(mode, chunked) for mode in ("plain", "checkpointed", "reversible"))
    saved = check.peak - rev.peak
    larger = plan.memory is not None and rev.largest_batch > check.largest_batch
    parts = [_saving(plan, plain, saved, rev)]
    if larger:
        parts.append(f"fits batch {rev.largest_batch} instead of {check.largest_batch} at the same speed")
    elif plan.memory is not None:
        parts.append(
            f"fits batch {rev.largest_batch}, checkpointing {check.largest_batch}, at the same speed"
        )
    plain_fits = plan.memory is not None and plain.peak <= plan.memory
    if rev.keep and not plain_fits:
        faster = f"{rev.keep_step_time:.2f} instead of {rev.step_time:.2f} times plain's time"
        parts.append(f"takes {faster} with --keep {rev.keep} at batch {plan.batch}")
    sentence = f"Reversible training {', '.join(parts[:-1])}{' and ' * (len(parts) > 1)}{parts[-1]}"
    if plain_fits:
        sentence += f"; plain training fits at batch {plan.batch} as well and is the fastest"
    best, way = (rev, plan.settings["scheme"]) if saved > 0 or larger else (check, "checkpoint")
    return f"{sentence}; {_how(plan, model, best, way)}"


def _saving(plan: Plan, plain: Row, saved: float, rev: Row) -> str:
    beside = f"and {size(plain.peak - rev.peak)} beside plain training " * (plain.peak > rev.peak)
    if saved > 0:
        return f"saves {size(saved)} beside checkpointing {beside}at batch {plan.batch}"
    less = f"holds {size(-saved)} more than checkpointing" if saved < 0 else "holds as much as checkpointing"
    return f"{less} at batch {plan.batch}, since the peak is at the {rev.moment}"


def _how(plan: Plan, model: str, row: Row, way: str) -> str:
    """The command, or why there is no single one."""
    s = plan.settings
    batch = row.largest_batch or plan.batch
    if s["weights"] in ("int8", "int4"):
        bits = s["weights"].removeprefix("int")
        return f"load the base in {bits} bits and call revstep.hf.convert(model, {way!r}) before peft"
    if s["world"] > 1:
        return f"call revstep.hf.convert(model, {way!r}) in the script that runs on the {s['world']} GPUs"
    words = [
        "revstep finetune",
        shlex.quote(model),
        "--data PATH",
        f"--context {plan.sequence} --batch {batch}",
    ]
    if s["trainable"] == "all":
        words.append("--full")
    else:
        rank, _, targets = s["trainable"].removeprefix("lora:r=").partition(",targets=")
        words.append(f"--lora {rank} --lora-targets {targets or 'auto'}")
    words.append(f"--scheme {way}")
    if s["tile"]:
        words.append(f"--tile {s['tile']}")
    if s["offload_carries"]:
        words.append("--offload-carries")
    if s["dtype"] != "float32":
        words.append(f"--dtype {s['dtype']}")
    return f"run: {' '.join(words)}"


def choice(plan: Plan) -> str | None:
    """A sentence: the fastest point that fits the plan's memory at its batch, how to ask for it, and what the
    optimiser's step inside backward would gain; what the smallest needs where none fits. None without memory.
    """
    if plan.memory is None:
        return None
    allowed = [p for p in plan.points if p.fused_step == plan.settings["fused_step"]]
    best, fused = fastest(allowed, plan.memory), fastest(plan.points, plan.memory)
    if best is None:
        said = nothing_fits(allowed, plan.memory, plan.batch)
        return f"Nothing fits: {said}" + (f"; with --fused-step {_point(fused)} fits" if fused else "")
    said = f"Fastest that fits {size(plan.memory)} at batch {plan.batch}: {_point(best)}"
    if fused is not None and fused.step_time < best.step_time:
        said += f"; with --fused-step {_point(fused)}"
    return said


def _point(p: Point) -> str:
    flags = {
        "plain": "--scheme plain",
        "checkpointed": "--scheme checkpoint",
        "reversible": f"--keep {p.keep}" + (f" --tile {p.tile}" if p.tile else ""),
    }[p.mode]
    return f"{p}, {size(p.peak)}, {p.step_time:.2f} times plain's time ({flags})"


# ---- A plan as text ----

HEAD = (
    "mode",
    "logits",
    "parameters",
    "gradients",
    "optimiser",
    "engine",
    "activations",
    "states",
    "a layer's graph",
    "head",
    "peak",
    "largest batch",
    "step time",
    "keep",
)


def cells(row: Row) -> list[str]:
    """One row under ``HEAD``."""
    fits = (
        "-"
        if row.largest_batch is None
        else str(row.largest_batch)
        if row.largest_batch
        else f"0 (short of {size(row.short)})"
    )
    keep = "-" if row.keep is None else f"{row.keep} ({row.keep_step_time:.2f}x)"
    sizes = (
        row.parameters,
        row.gradients,
        row.optimizer,
        row.engine,
        row.activations,
        row.states,
        row.block,
        row.head,
        row.peak,
    )
    return [
        row.mode,
        "chunked" if row.chunked else "all",
        *("-" if not s else size(s) for s in sizes),
        fits,
        f"{row.step_time:.2f}x",
        keep,
    ]


def heading(plan: Plan) -> str:
    """What the table is for."""
    s = plan.settings
    where = f"{s['world']} GPUs, {s['engine']}" if s["world"] > 1 else "one GPU"
    cast = "" if s["weights"].startswith("int") else "autocast "
    precision = s["dtype"] if s["dtype"] == s["weights"] else f"{s['dtype']} {cast}on {s['weights']} weights"
    memory = "" if plan.memory is None else f", {size(plan.memory)} each after {s['headroom']:.0%} headroom"
    return (
        f"{plan.model}: {count(plan.parameters)} parameters, {count(plan.trainable)} train"
        f" ({s['trainable']}), {plan.layers} layers; batch {plan.batch} x {plan.sequence} tokens a GPU,"
        f" {precision}, {s['optimizer']}{' inside backward' * s['fused_step']}; {where}{memory}; reversible:"
        f" {s['scheme']}, {s['state']}{f', MLPs by tiles of {tile} tokens' if (tile := s['tile']) else ''}"
        f"{', carries in host memory' * s['offload_carries']}"
    )


def table(plan: Plan) -> str:
    """Heading, table, and a line on the logits."""
    rows = [cells(row) for row in plan.rows]
    widths = [max(len(row[i]) for row in (HEAD, *rows)) for i in range(len(HEAD))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
        for row in (HEAD, ["-" * w for w in widths], *rows)
    ]
    note = f"all logits at this batch: {size(plan.logits)}" + (
        f"; no chunked loss: {plan.no_chunk}" if plan.no_chunk else ""
    )
    return "\n".join([heading(plan), "", *lines, "", note])


def shortage(plan: Plan) -> str | None:
    """See ``Plan.shortage``."""
    if plan.memory is None or any(row.largest_batch for row in plan.rows):
        return None
    least = min(plan.rows, key=lambda row: row.short)
    held = least.parameters + least.optimizer + least.engine
    advice = ["a shorter sequence"]
    if plan.settings["trainable"] == "all":
        advice.append("LoRA")
    elif not plan.settings["weights"].startswith("int"):
        advice.append("a base in 8 or 4 bits")
    if plan.settings["engine"] != "fsdp":
        advice.append("more GPUs with FSDP")
    return (
        f"one sequence of {plan.sequence} tokens does not fit in {size(plan.memory)}: the smallest,"
        f" {least.mode}{' with chunked loss' if least.chunked else ''}, is short of {size(least.short)};"
        f" parameters, optimiser state and engine alone take {size(held)}, gradients {size(least.gradients)}."
        f" Try {' or '.join(advice)}"
    )
