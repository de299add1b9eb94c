"""Fine-tuning by transformers' own Trainer, with what a reversible model has to tell beside the loss.

In use:
    tuned = finetune(model, rows, FineTune(out="run", steps=200))  # rows: token ids (N, T)
    trained, plain = both_losses(model, batches)  # as trained, and with the layers' own forward
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._fused_step import fused_step
from .._imports import require
from .._models.layers import add_lora, merge_lora, unwrapped
from .._models.training import Tally
from .._values import LARGEST_SEED_32, number, whole
from ..errors import ConfigError, UnsupportedError
from ._calibrate import as_plain, both_losses, four_losses
from ._distill import Distiller, distillation_trainer
from ._install import conversion
from ._keeping import Log, named_where_it_begins, whole_checkpoints
from ._loss import chunk_loss, unchunk_loss
from ._settings import progress_bar, time_left
from ._whole import load_checkpoint

__all__ = [
    "FineTune",
    "Tuned",
    "add_lora",
    "as_plain",
    "both_losses",
    "finetune",
    "four_losses",
    "merge_lora",
]

DTYPES = ("float32", "bfloat16", "float16")
#: Of rows, steps and the like: the Trainer multiplies them.
MOST = 2**31 - 1
#: What does not go with a step inside backward, and why.
FUSED = {
    "accumulate > 1": "every backward pass would be an optimiser step",
    "dtype float16": "gradients would be used with the loss's scale",
}


@dataclass(frozen=True)
class FineTune:
    """How to fine-tune.

    Attributes:
        out: folder of the Trainer's checkpoints (checkpoint-N) and of log.jsonl, a line a step.
        steps: optimiser steps.
        batch: rows of a micro-batch.
        accumulate: micro-batches of an optimiser step.
        lr: AdamW's largest learning rate.
        warmup: optimiser steps in which the learning rate rises to ``lr``.
        weight_decay: AdamW's.
        clip: largest norm of the gradient; 0: it is not clipped.
        schedule: of the learning rate, transformers' ``lr_scheduler_type``.
        dtype: of the computation, by autocast (float16: with a gradient scaler, on a GPU).
        device: "cpu", "cuda", or "auto": the GPU where there is one.
        seed: of the order of the rows, dropout and the signs of BDIA.
        save_every: steps between checkpoints, 0: only when stopped early.
        resume: go on from the last checkpoint in ``out``.
        loss_chunk: rows of logits held at once, "auto", or 0: all (see ``chunk_loss``).
        head_last: the gradient of a matrix that is embedding and head comes last (see ``chunk_loss``).
        checkpointing: torch's gradient checkpointing, for a plain model.
        fused_step: the optimiser steps inside backward, so that gradients do not exist all at once
            (:func:`revstep.fused_step`). ``clip`` then takes the norm of the step before. Not with
            ``accumulate``, float16 or several processes.
        teacher_weight: of the distillation loss, where there is a teacher
            (:func:`~revstep.hf.distillation_loss`).
        temperature: of that loss.

    Raises:
        ConfigError: a number that cannot be used.
    """

    out: str
    steps: int = 200
    batch: int = 4
    accumulate: int = 1
    lr: float = 5e-5
    warmup: int = 0
    weight_decay: float = 0.0
    clip: float = 1.0
    schedule: str = "cosine"
    dtype: str = "float32"
    device: str = "auto"
    seed: int = 0
    save_every: int = 0
    resume: bool = False
    loss_chunk: int | str = "auto"
    head_last: bool = False
    checkpointing: bool = False
    fused_step: bool = False
    teacher_weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            whole(name, getattr(self, name), 1, MOST)
        for name in ("warmup", "save_every"):
            whole(name, getattr(self, name), 0, MOST)
        whole("seed", self.seed, 0, LARGEST_SEED_32)
        for name in ("weight_decay", "clip"):
            number(name, getattr(self, name), 0.0)
        number("lr", self.lr, 0.0, open_low=True)
        if self.head_last and self.loss_chunk == 0:
            raise ConfigError("head_last is of the loss in chunks, and loss_chunk=0 turns that off: drop one")
        for wrong in (
            "accumulate > 1" if self.accumulate > 1 else "",
            "dtype float16" * (self.dtype == "float16"),
        ):
            if self.fused_step and wrong:
                raise ConfigError(f"fused_step and {wrong}: {FUSED[wrong]}, drop one")
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype is {self.dtype!r}, expected one of {', '.join(DTYPES)}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(
                f"device is {self.device!r}, expected auto, cpu or cuda (choose one GPU of several with"
                " CUDA_VISIBLE_DEVICES)"
            )


@dataclass(kw_only=True)
class Tuned(Tally):
    """What ``finetune`` saw. The tally is of the last backward pass of each step; a plain model leaves it
    empty.

    Attributes:
        losses: of each step done in this call.
        seconds: of each step done in this call.
        step: steps of the run so far.
        interrupted: stopped before the last step; a checkpoint was written.
        tokens: of a step.
    """

    tokens: int
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    step: int = 0
    interrupted: bool = False

    @property
    def tokens_per_second(self) -> float:
        """From the median step."""
        return self.tokens / sorted(self.seconds)[len(self.seconds) // 2] if self.seconds else 0.0


class _Rows(torch.utils.data.Dataset):
    def __init__(self, rows: Tensor):
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def finetune(
    model: nn.Module,
    rows: Tensor,
    settings: FineTune,
    *,
    teacher: nn.Module | None = None,
    stop: Callable[[], bool] | None = None,
    say: Callable[[str], None] | None = print,
    progress: bool = False,
) -> Tuned:
    """Train ``model`` (converted, plain, or a peft model) on next tokens of ``rows`` (N, T) int64, in place.

    Args:
        model: a model for next tokens; its weights change.
        rows: token ids, one sequence a row, at least two tokens long.
        settings: how long, how fast, with what, and where to.
        teacher: learn its answers instead of the labels (see ``Distiller``).
        stop: asked after each step; true ends the run there, with a checkpoint.
        say: gets a line a step: loss, tokens a second, the reconstruction of the states, and the time left.
        progress: on a terminal, a bar on stderr that says the same instead of the lines.

    Raises:
        ConfigError: rows of another kind, settings the Trainer refuses, nothing to resume, a checkpoint that
            lacks weights.
        ReconstructionError: a state was not rebuilt.
        StateOverflowError: a state left its format.
    """
    if rows.ndim != 2 or rows.is_floating_point() or rows.shape[1] < 2 or not len(rows):
        raise ConfigError(
            f"rows are {rows.dtype} of shape {tuple(rows.shape)}, expected token ids (N, T) with N >= 1 and T"
            " >= 2"
        )
    transformers = require("transformers", "fine-tuning", "hf")
    require("accelerate", "fine-tuning with the Trainer", "hf")
    tuned = Tuned(tokens=settings.batch * settings.accumulate * rows.shape[1])
    with _prepared(model, settings, teacher):
        made = {"model": model, "args": _arguments(transformers, settings), "train_dataset": _Rows(rows)}
        if teacher is None:
            trainer = transformers.Trainer(**made)
        else:
            distiller = Distiller(
                teacher.eval(), temperature=settings.temperature, weight=settings.teacher_weight
            )
            trainer = distillation_trainer()(**made, distiller=distiller)
        trainer.remove_callback(transformers.PrinterCallback)
        with progress_bar(settings.steps, progress) as bar, _stepping(transformers, trainer, settings):
            trainer.add_callback(_watch(transformers, model, tuned, settings, stop, say, bar))
            last = _last_checkpoint(settings) if settings.resume else None
            if last is not None:
                load_checkpoint(model, last)
            with whole_checkpoints(trainer, Path(settings.out)), named_where_it_begins(last, tuned.seconds):
                trainer.train(resume_from_checkpoint=last)
    tuned.step = trainer.state.global_step
    model.zero_grad(set_to_none=True)
    return tuned


@contextlib.contextmanager
def _prepared(model: nn.Module, settings: FineTune, teacher: nn.Module | None) -> Iterator[None]:
    """Inside, the loss in chunks and gradient checkpointing as asked for. A teacher's answers need all
    logits, so with one the loss has no chunks.
    """
    chunked = settings.loss_chunk != 0 and teacher is None
    if settings.head_last and not chunked:
        raise ConfigError("head_last is of the loss in chunks, which a teacher rules out: drop one")
    if chunked:
        _chunk(model, settings.loss_chunk, settings.head_last)
    try:
        with checkpointed(model, settings.checkpointing):
            yield
    finally:
        if chunked:
            unchunk_loss(model)


@contextlib.contextmanager
def _stepping(transformers: Any, trainer: Any, settings: FineTune) -> Iterator[None]:
    """Inside, the Trainer's optimiser steps in backward, where that is asked for."""
    fused = contextlib.ExitStack()

    class Fuse(transformers.TrainerCallback):
        def on_train_begin(self, *_: Any, optimizer: Any = None, **__: Any) -> None:
            fused.enter_context(fused_step(optimizer, clip_norm=settings.clip or None))

    if settings.fused_step:
        trainer.add_callback(Fuse())
    with fused:
        yield


def check_loss(model: nn.Module, chunk: int | str, head_last: bool = False) -> None:
    """Raises what a loss in chunks would when the training begins; the model is as it was."""
    if chunk != 0:
        unchunk_loss(_chunk(model, chunk, head_last))


def _chunk(model: nn.Module, chunk: int | str, head_last: bool) -> nn.Module:
    try:
        return chunk_loss(model, chunk, head_last)
    except UnsupportedError as error:
        instead = "Here: FineTune(loss_chunk=0), or revstep finetune --loss-chunk 0, holds all logits"
        raise UnsupportedError(f"{error}. {instead}") from error


@contextlib.contextmanager
def checkpointed(model: nn.Module, on: bool = True) -> Iterator[None]:
    """torch's checkpointing of each layer inside, where ``on``."""
    inner = unwrapped(model)
    # Of older transformers.
    word = "activation" if hasattr(inner, "activation_checkpointing_enable") else "gradient"
    if on:
        getattr(inner, f"{word}_checkpointing_enable")({"use_reentrant": False})
    try:
        yield
    finally:
        if on:
            getattr(inner, f"{word}_checkpointing_disable")()


def _arguments(transformers: Any, s: FineTune) -> Any:
    try:
        return transformers.TrainingArguments(
            output_dir=s.out,
            max_steps=s.steps,
            per_device_train_batch_size=s.batch,
            gradient_accumulation_steps=s.accumulate,
            learning_rate=s.lr,
            lr_scheduler_type=s.schedule,
            warmup_steps=s.warmup,
            weight_decay=s.weight_decay,
            max_grad_norm=0.0 if s.fused_step else s.clip,  # fused, there are no gradients to clip at the end
            bf16=s.dtype == "bfloat16",
            fp16=s.dtype == "float16",
            use_cpu=s.device == "cpu" or not torch.accelerator.is_available(),
            seed=s.seed,
            save_strategy="steps" if s.save_every else "no",
            save_steps=s.save_every or 500,
            save_total_limit=2,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"transformers refuses these settings: {error}") from error


def _last_checkpoint(s: FineTune) -> str:
    last = (
        require("transformers.trainer_utils", "resuming", "hf").get_last_checkpoint(s.out)
        if Path(s.out).is_dir()
        else None
    )
    if last is None:
        raise ConfigError(
            f"there is no checkpoint-N in {s.out} to resume from; expected the out folder of a run with"
            " save_every, or one that was interrupted"
        )
    return last


def _watch(
    transformers: Any, model: nn.Module, tuned: Tuned, s: FineTune, stop: Callable[[], bool] | None,
    say: Callable[[str], None] | None, bar: Any,
) -> Any:  # fmt: skip
    """A callback of the Trainer that keeps losses, times and reports, and ends the run when asked."""
    say = say or (lambda line: None)
    log = Log(Path(s.out))

    class Watch(transformers.TrainerCallback):
        began = 0.0

        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            log.begin(state.global_step, s.resume)
            if bar is not None:
                # The time left is reckoned from the steps done here.
                bar.initial = bar.n = bar.last_print_n = state.global_step

        def on_step_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            tuned.seconds.append(time.perf_counter() - self.began)
            if stop is not None and stop() and state.global_step < state.max_steps:
                tuned.interrupted = control.should_save = control.should_training_stop = True

        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **rest: Any
        ) -> None:
            if logs is None or "loss" not in logs:
                return  # the summary at the end
            status = _status(model, tuned)
            tuned.losses.append(float(logs["loss"]))
            entry = {
                "step": state.global_step,
                "loss": tuned.losses[-1],
                "seconds": tuned.seconds[-1],
                "reconstruction": status,
            }
            log.add(entry)
            if bar is not None:
                bar.set_postfix_str(f"loss {tuned.losses[-1]:.4f}, states {status}", refresh=False)
                bar.update(state.global_step - bar.n)
                return
            speed = tuned.tokens / tuned.seconds[-1]
            left = time_left(tuned.seconds, s.steps - state.global_step)
            at = f"step {state.global_step}/{s.steps}  loss {tuned.losses[-1]:.4f}"
            say(f"{at}  {speed:,.0f} tokens/s  states {status}  {left}")

    return Watch()


def _status(model: nn.Module, tuned: Tuned) -> str:
    """The report of the step's last backward pass in words, added to ``tuned``."""
    made = conversion(model)
    if made is None:
        return "stored"
    report = made.report
    if report is None:
        return (  # keep = all layers, checks off, or nothing below the last layer needs a gradient
            "not rebuilt"
        )
    tuned.add(report)
    return str(report)
