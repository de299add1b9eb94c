"""A plan as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..sizes import count, size

if TYPE_CHECKING:
    from .planner import Plan, Row

HEAD = (
    "mode", "logits", "parameters", "gradients", "optimiser", "engine", "activations", "states", "a layer's graph", "head", "peak", "largest batch",
    "step time", "keep",
)  # fmt: skip


def cells(row: Row) -> list[str]:
    """One row under ``HEAD``."""
    fits = "-" if row.largest_batch is None else str(row.largest_batch) if row.largest_batch else f"0 (short of {size(row.short)})"
    keep = "-" if row.keep is None else f"{row.keep} ({row.keep_step_time:.2f}x)"
    sizes = (row.parameters, row.gradients, row.optimizer, row.engine, row.activations, row.states, row.block, row.head, row.peak)
    return [row.mode, "chunked" if row.chunked else "all", *("-" if not s else size(s) for s in sizes), fits, f"{row.step_time:.2f}x", keep]


def heading(plan: Plan) -> str:
    """What the table is for."""
    s = plan.settings
    where = f"{s['world']} GPUs, {s['engine']}" if s["world"] > 1 else "one GPU"
    cast = "" if s["weights"].startswith("int") else "autocast "
    precision = s["dtype"] if s["dtype"] == s["weights"] else f"{s['dtype']} {cast}on {s['weights']} weights"
    memory = "" if plan.memory is None else f", {size(plan.memory)} each after {s['headroom']:.0%} headroom"
    return (
        f"{plan.model}: {count(plan.parameters)} parameters, {count(plan.trainable)} train ({s['trainable']}), {plan.layers} layers; "
        f"batch {plan.batch} x {plan.sequence} tokens a GPU, {precision}, {s['optimizer']}; {where}{memory}; reversible: {s['scheme']}, {s['state']}"
    )


def table(plan: Plan) -> str:
    """Heading, table, and a line on the logits."""
    rows = [cells(row) for row in plan.rows]
    widths = [max(len(row[i]) for row in (HEAD, *rows)) for i in range(len(HEAD))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in (HEAD, ["-" * w for w in widths], *rows)]
    note = f"all logits at this batch: {size(plan.logits)}" + (f"; no chunked loss: {plan.no_chunk}" if plan.no_chunk else "")
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
        f"one sequence of {plan.sequence} tokens does not fit in {size(plan.memory)}: the smallest, {least.mode}{' with chunked loss' if least.chunked else ''}, "
        f"is short of {size(least.short)}; parameters, optimiser state and engine alone take {size(held)}, gradients {size(least.gradients)}. "
        f"Try {' or '.join(advice)}"
    )
