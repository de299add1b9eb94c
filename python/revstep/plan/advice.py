"""The sentence at the end of a plan: what reversible training saves here, and the command that does it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from ..sizes import size

if TYPE_CHECKING:
    from .planner import Plan, Row


def advice(plan: Plan, model: str = "MODEL") -> str:
    """One sentence for a plan in which something fits.

    The rows compared are those with the loss in chunks, where there are such. Where checkpointing takes no more
    and no smaller a batch, the sentence says so and the command is checkpointing's.

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
            f"fits batch {rev.largest_batch}, checkpointing {check.largest_batch}, at the same speed",
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
    if s["dtype"] != "float32":
        words.append(f"--dtype {s['dtype']}")
    return f"run: {' '.join(words)}"
