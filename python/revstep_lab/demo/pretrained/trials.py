"""What ``revstep bench pretrained`` runs: one pretrained model fine-tuned by every method over seeds and
deployed as the plain model, and seconds and bytes of one step of each.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from revstep import fused_step, hf
from revstep.hf._calibrate import both_losses
from revstep.hf._finetune import FineTune, add_lora, checkpointed, finetune, merge_lora
from revstep.hf._loss import chunk_loss
from revstep.hf._settings import quiet
from revstep.hf._sources import load_model

from ...bench.peaks import by_allocator
from ...bench.results import Runs
from ...bench.runner import environment, goal, measure
from .bases import (
    BY_LAYER,
    BY_TILES,
    CHECKPOINTING,
    COSTS,
    FUSED,
    HEAD_LAST,
    LEFT_OUT,
    LOSSES,
    METHODS,
    PLAIN,
    Bases,
    PretrainedCase,
)

# ------------------------------------------------------------------------------------------------------------
# Seconds and bytes of one step of every method, side by side.


def measured(
    bases: Bases,
    adapted: Callable[[nn.Module, PretrainedCase, int], nn.Module],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """``{method: {"p20", "p50", "p80", "ratios", "kept", "peak"}}`` of a forward and a backward pass.

    All have the loss in chunks. The optimiser's step, the same for every method, is in neither, unless it is
    taken inside backward; ``kept`` and ``peak`` are bytes above the weights and the optimiser's state.
    Nothing is distilled for it: other weights take the same time and bytes.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler would write lines of its own
    case, rows = bases.case, bases.timed_rows
    made = {
        name: chunk_loss(adapted(_begun(bases, name), case, 0).train(), head_last=METHODS[name].head_last)
        for name in case.methods
    }

    if case.optimizer == FUSED:
        for model in made.values():
            weights = [p for p in model.parameters() if p.requires_grad]
            fused_step(torch.optim.AdamW(weights, lr=case.lr, fused=True))  # as the Trainer, no temporaries

    def step(name: str, between: Callable[[], None] = lambda: None) -> None:
        model = made[name]
        with checkpointed(model, METHODS[name].checkpointing):
            loss = model(input_ids=rows, labels=rows, use_cache=False).loss
            between()
            loss.backward()
        model.zero_grad(set_to_none=True)

    found: dict[str, dict[str, Any]] = {}
    for name in case.methods:
        step(name)  # makes the optimiser's state; what conversion left behind is gone afterwards
        gc.collect()
        found[name] = dict(by_allocator(lambda between, name=name: step(name, between)))
        say(
            f"a step of {case.timed_batch} x {case.timed_context} tokens, {name}:"
            f" {found[name]['peak'] / 1e6:,.0f} MB at its peak"
        )
    clock = time.process_time if case.threads == 1 else time.perf_counter
    timed = measure(
        {name: lambda name=name: step(name) for name in case.methods}, rounds, warmup=1, clock=clock
    )
    for row in timed:
        found[row.name].update(row.to_dict())
    return found


def _begun(bases: Bases, name: str) -> nn.Module:
    return bases.converted(name) if METHODS[name].distilled else bases.load(name)


# ------------------------------------------------------------------------------------------------------------
# One pretrained model fine-tuned plain, with checkpointing and reversibly, and deployed as the plain model.
#
# All methods see the same rows in the same order, which a seed decides. Finished runs are kept in a file, and
# the models that take long to prepare in a folder beside it, so that it goes on where it stopped. ``revstep
# bench pretrained`` runs this.

#: Deployed loss and seconds of c by layer: against plain's, and against checkpointing's.
DEPLOYED, SECONDS = 1.002, 1.00
#: Peak against checkpointing's, by method, by what trains, and by what becomes of the gradients.
PEAK = {
    (BY_LAYER, "LoRA", LEFT_OUT): 0.60,
    (BY_TILES, "LoRA", LEFT_OUT): 0.40,
    **{(name, "full", LEFT_OUT): 0.95 for name in (BY_TILES, HEAD_LAST)},
    **{(name, "full", FUSED): 0.55 for name in (BY_TILES, HEAD_LAST)},
}
#: Checkpointing computes what plain training computes: so many steps show it, the rest would be the same
#: again.
SAME_STEPS = 5
#: What is compared over the seeds.
COMPARED = ("as_trained", "deployed")


def adapted(model: nn.Module, case: PretrainedCase, seed: int) -> nn.Module:
    """The model, with adapters where they are asked for."""
    torch.manual_seed(seed)
    return add_lora(model, case.rank, targets="all-linear") if case.adapting == "LoRA" else model


def trial(bases: Bases, name: str, seed: int, rate: float, steps: int) -> dict[str, Any]:
    """One fine-tuning as plain JSON values; of checkpointing only the first steps, and no held-out losses
    after them.
    """
    case, method, text = bases.case, METHODS[name], bases.text
    model = adapted(bases.load(name), case, seed)
    before = hf.mean_loss(model, text.held_out)
    with tempfile.TemporaryDirectory() as scratch:
        how = FineTune(
            out=scratch, steps=steps, batch=case.batch, lr=rate, warmup=steps // 10, seed=seed, device="cpu",
            checkpointing=method.checkpointing, head_last=method.head_last,
        )  # fmt: skip
        tuned = finetune(
            model, text.train, how, stop=_after(SAME_STEPS) if method.checkpointing else None, say=None
        )
    found = {
        "variant": name,
        "seed": seed,
        "rate": rate,
        "steps": steps,
        "before": before,
        "states_rebuilt": tuned.states,
        "states_bit_equal": tuned.matched,
        "training_loss": [round(v, 6) for v in tuned.losses],
        "seconds_a_step": statistics.median(tuned.seconds),
    }
    if method.checkpointing:
        return found
    trained, unmerged = both_losses(model, text.held_out)
    return {**found, "as_trained": trained, "unmerged": unmerged, "deployed": _deployed(model, text.held_out)}


def _after(steps: int) -> Callable[[], bool]:
    """What is asked after every step, and is true from that many on."""
    asked = itertools.count(1)
    return lambda: next(asked) >= steps


def _deployed(model: nn.Module, batches: Sequence[dict]) -> float:
    """The loss of what anyone would deploy: merged, reverted, saved, and loaded by transformers alone."""
    model = merge_lora(model)
    if hf.conversion(model) is not None:
        hf.revert(model)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return hf.mean_loss(load_model(folder), batches)


def summary(runs: Runs, case: PretrainedCase, name: str) -> dict[str, Any]:
    """Mean, standard deviation and each of the losses of a method over the seeds, and of their quotients with
    the deployed loss of plain fine-tuning."""
    own, plain = (runs.of(m, case.seeds, case.steps) for m in (name, PLAIN))
    found: dict[str, Any] = {
        "name": name, "before": own[0]["before"], "seeds": len(own),
        **{k: sum(run[k] for run in own) for k in ("states_rebuilt", "states_bit_equal")},
    }  # fmt: skip
    if METHODS[name].checkpointing:
        apart = (
            abs(a - b)
            for run, same in zip(own, plain, strict=True)
            for a, b in zip(run["training_loss"], same["training_loss"])
        )
        return {**found, "first_steps": len(own[0]["training_loss"]), "training_losses_apart": max(apart)}
    for what in COMPARED:
        found[what] = _spread([run[what] for run in own])
    quotients = {
        what: [a[what] / b["deployed"] for a, b in zip(own, plain, strict=True)] for what in COMPARED
    }
    return {**found, "to_plain": {what: _spread(values) for what, values in quotients.items()}}


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """``sd`` is None of one value."""
    return {
        "mean": statistics.mean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "each": list(values),
    }


def goals(
    losses: Sequence[dict[str, Any]], costs: dict[str, dict[str, Any]], case: PretrainedCase
) -> list[dict]:
    """Those of c by layer, as far as what they compare was measured and there is a goal for it."""
    made = [
        goal(
            f"c by layer, {case.bits:g} bits: deployed loss / plain's",
            row["to_plain"]["deployed"]["mean"],
            DEPLOYED,
            False,
        )
        for row in losses
        if row["name"] == BY_LAYER
    ]
    for name in (BY_LAYER, BY_TILES, HEAD_LAST):
        if not {name, CHECKPOINTING} <= costs.keys():
            continue
        own, other = costs[name], costs[CHECKPOINTING]
        about = f"c by layer, {case.bits:g} bits{name.removeprefix(BY_LAYER)}"
        most = PEAK.get((name, case.adapting, case.optimizer))
        made.append(
            goal(
                f"{about}: seconds of a step / checkpointing's", own["ratios"][CHECKPOINTING], SECONDS, False
            )
        )
        if most is not None:
            peak = own["peak"] / other["peak"]
            made.append(goal(f"{about}: peak of the allocator / checkpointing's", peak, most, False))
    return made


def run_pretrained(
    case: PretrainedCase, load: Callable[[str], tuple[Any, Any]], resume: str = "", rounds: int = 3,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Every run that is not there yet, seed by seed, then seconds and bytes of a step.

    Args:
        case: what is compared.
        load: gives (model, tokenizer) of ``case.model``.
        resume: a file that keeps the runs; FILE.models beside it keeps the models they begin from. Empty:
            nothing is kept.
        rounds: of timed steps.
        say: gets a line a run.

    Returns:
        ``{"environment", "case", "class", "parameters", "text", "losses", "costs", "runs", "goals"}``, ready
        for JSON; ``losses`` and ``costs`` a row a method, each empty where it is not among the parts.

    Raises:
        ConfigError: the file holds runs of another case, or the model cannot be had.
    """
    torch.set_num_threads(case.threads)
    runs, losses, costs = Runs(Path(resume) if resume else None, case.of_a_run()), [], {}
    with quiet(), _models(resume) as folder:
        bases = Bases(case, folder, load, say)
        say(
            f"{bases.name}, {bases.parameters:,} parameters, {case.adapting}; to learn: {bases.text.what},"
            f" {bases.text.train.numel():,} tokens"
        )
        if LOSSES in case.parts:
            for seed in case.seeds:
                for name in case.methods:
                    run = runs.get(name, seed, case.lr, case.steps, lambda *key: trial(bases, *key))
                    say(f"seed {seed}, {name}: {_line(run)}")
            losses = [summary(runs, case, name) for name in case.methods]
        if COSTS in case.parts:
            costs = measured(bases, adapted, rounds, say)
    return {
        "environment": environment(),
        "case": {**asdict(case), "model": case.short_name},
        "class": bases.name,
        "parameters": bases.parameters,
        "text": bases.text.what,
        "losses": losses,
        "costs": list(costs.values()),
        "runs": [
            run for name in case.methods * bool(losses) for run in runs.of(name, case.seeds, case.steps)
        ],
        "goals": goals(losses, costs, case),
    }


@contextlib.contextmanager
def _models(resume: str) -> Iterator[Path]:
    if resume:
        yield Path(f"{resume}.models")
        return
    with tempfile.TemporaryDirectory(prefix="revstep-") as folder:
        yield Path(folder)


def _line(run: dict[str, Any]) -> str:
    if "deployed" not in run:
        return f"{len(run['training_loss'])} steps, {run['seconds_a_step']:.2f} s each"
    return (
        f"{run['before']:.4f} -> {run['as_trained']:.4f}, deployed {run['deployed']:.4f},"
        f" {run['seconds_a_step']:.2f} s a step"
    )
