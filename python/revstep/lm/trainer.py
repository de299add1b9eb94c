"""The training loop. A run is its ``TrainConfig``: stopped and resumed anywhere, it gives the same losses and weights, bit for bit.

That holds on one machine with one torch version, device and thread count; on CUDA also with deterministic kernels.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, RevstepError
from ..specs import parse_scheme, parse_state
from .checkpoint import Checkpoint, checkpoints, load_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import Batches, Corpus, prepare
from .model import LanguageModel, make_model
from .optim import learning_rate, make_optimizer
from .session import Interrupt, Progress, StepLog, peak_memory

#: What may differ between a checkpoint and the run that goes on from it. Everything else would make it another run.
MAY_CHANGE = frozenset({"steps", "eval_every", "eval_batches", "save_every", "progress", "device", "keep", "checks", "out"})


class DivergedError(RevstepError, ArithmeticError):
    """The loss is NaN or infinite: going on would only spoil the weights."""


@dataclass
class Result:
    """What ``train`` returns.

    Attributes:
        config: the run.
        step: optimiser steps done in all; interrupted: stopped by SIGINT (a checkpoint was written).
        losses: training loss of each step of this call; first_step: the step before the first of them.
        val_losses: (steps done, validation loss) of this call.
        tokens_per_second: training tokens over training time of this call, the first step left out (it warms up).
        peak_memory: bytes, see ``session.peak_memory``.
        exact: every backward of this call rebuilt its states bit for bit; None for a trunk that rebuilds nothing.
        max_error: largest reconstruction error reported (0.0 when exact, None when a trunk did not measure it).
        reconstruction: the last report as text ("exact (12 layers)", "stored", "recomputed").
        model, tokenizer: trained model, on the run's device, and its tokenizer.
        checkpoint: folder of the last checkpoint, or None without ``out``.
    """

    config: TrainConfig
    step: int
    first_step: int
    interrupted: bool = False
    losses: list[float] = field(default_factory=list)
    val_losses: list[tuple[int, float]] = field(default_factory=list)
    tokens_per_second: float = 0.0
    peak_memory: int = 0
    exact: bool | None = None
    max_error: float | None = 0.0
    reconstruction: str = ""
    model: nn.Module | None = None
    tokenizer: Any = None
    checkpoint: Path | None = None


def train(
    config: TrainConfig, *, resume: bool = False, stop_at: int | None = None, corpus: Corpus | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
) -> Result:  # fmt: skip
    """Train a model as ``config`` says. Seeds torch's global generators.

    Args:
        config: the run. ``config.out`` gets ``data/``, ``log.jsonl`` and the newest checkpoint.
        resume: go on from the checkpoint in ``config.out``.
        stop_at: stop, with a checkpoint, once this many steps are done in all; the schedule still ends at ``config.steps``.
        corpus: tokens made before with ``prepare``, to share among runs without ``out``; default: ``config.data``.
        on_step: called with each step's log entry.

    Raises:
        ConfigError: a value that cannot be used; a folder that already holds a run; a checkpoint of another run.
        CheckpointError: a checkpoint cannot be written or read. DivergedError: the loss is not finite.
        ReconstructionError, StateOverflowError: from a reversible trunk.
    """
    if resume and not config.out:
        raise ConfigError("nothing to resume from: out is empty; give the folder of a run")
    out = Path(config.out) if config.out else None
    saved = load_checkpoint(out) if resume else None
    if saved is not None:
        _check_same_run(config, saved)
    elif out is not None and checkpoints(out):
        raise ConfigError(f"{out} already holds a run ({checkpoints(out)[-1].name}); go on with --resume, or choose another --out")
    with contextlib.ExitStack() as stack:
        if corpus is None:
            folder = out / "data" if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="revstep-")))
            corpus = Corpus.open(folder) if saved is not None else _prepare(folder, config)
        elif out is not None:
            raise ConfigError("corpus and out exclude each other: a run folder keeps its own data; set out='' or leave corpus out")
        run = _Run(config, corpus)
        if saved is not None:
            run.restore(saved)
        return run.go(out, config.steps if stop_at is None else min(stop_at, config.steps), on_step)


def resume(
    out: str | Path, changes: Mapping[str, Any] | None = None, *, stop_at: int | None = None, on_step: Callable[[dict[str, Any]], None] | None = None
) -> Result:
    """Go on with the run in ``out``, as configured there; ``changes`` may name what ``MAY_CHANGE`` lists.

    Raises:
        as ``train``.
    """
    stored = {name: value for name, value in load_checkpoint(out, training=False).config.items() if name != "vocab"}
    return train(TrainConfig.from_dict({**stored, "out": str(out), **(changes or {})}), resume=True, stop_at=stop_at, on_step=on_step)


def _prepare(folder: Path, config: TrainConfig) -> Corpus:
    return prepare(folder, config.data, tokenizer=config.tokenizer, extensions=config.extensions, max_bytes=config.max_bytes)


def _check_same_run(config: TrainConfig, saved: Checkpoint) -> None:
    stored = TrainConfig.from_dict({name: value for name, value in saved.config.items() if name != "vocab"})
    for spec in dataclasses.fields(TrainConfig):
        mine, theirs = getattr(config, spec.name), getattr(stored, spec.name)
        if mine != theirs and spec.name not in MAY_CHANGE:
            raise ConfigError(
                f"{spec.name} is {mine!r}, but the run in {config.out} has {theirs!r}; leave it out to go on with that run, or choose another --out"
            )


def find_device(name: str) -> torch.device:
    """A torch device that works here; "auto" is cuda where there is one. Raises ConfigError."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}; try cpu") from error
    return device


def capture_random(device: torch.device) -> dict[str, Tensor]:
    """torch's generator states, as tensors."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    """The inverse of ``capture_random``; a state of a device that this run does not use is left alone."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


@torch.no_grad()
def evaluate(model: LanguageModel, batches: Batches, count: int, device: torch.device, dtype: torch.dtype = torch.float32) -> float:
    """Mean loss over ``count`` batches at fixed places of ``batches``; leaves the model's mode and every generator as they were."""
    training = model.training
    model.eval()
    try:
        with autocast(device, dtype):
            return sum(float(model(x.to(device), y.to(device))) for x, y in batches.spread(count)) / count
    finally:
        model.train(training)


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Autocast to ``dtype``; off for float32."""
    return torch.autocast(device.type, dtype=dtype if dtype != torch.float32 else torch.bfloat16, enabled=dtype != torch.float32)


def _worst(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)  # an error that was not measured stays unknown


class _Run:
    """Model, optimiser and data of one run, and the loop over them."""

    def __init__(self, config: TrainConfig, corpus: Corpus):
        self.config, self.corpus = config, corpus
        self.device, self.dtype = find_device(config.device), getattr(torch, config.dtype)
        half = config.dtype == "float16"
        # With a loss scale an overflow is part of the method: the state passes it on as NaN and the scaler skips the step.
        state = parse_state(config.state).make(on_nonfinite="propagate" if half else "raise")
        train_part, val_part = corpus.split(config.val_fraction, config.context)
        torch.manual_seed(config.seed)
        options = {name: getattr(config, name) for name in ("seed", "start", "readout", "keep", "checks")}
        self.model = make_model(config.shape(corpus.tokenizer.vocab), config.scheme, state=state, **options).to(self.device)
        self.optimizer = make_optimizer(self.model, config)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.batches = Batches(train_part, config.batch, config.context, config.seed)
        self.val_batches = Batches(val_part, config.batch, config.context, config.seed)
        self.step = 0
        self.saved_step = -1
        self.saved_in: Path | None = None

    def environment(self) -> dict[str, Any]:
        """What equal bits depend on besides the config."""
        return {"torch": str(torch.__version__), "device": self.device.type, "threads": torch.get_num_threads()}

    def capture(self) -> Checkpoint:
        """Everything the rest of the run depends on."""
        return Checkpoint(
            step=self.step,
            config={**self.config.to_dict(), "vocab": self.corpus.tokenizer.vocab},
            weights=self.model.state_dict(),
            training={
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "random": capture_random(self.device),
                "batches": self.batches.state_dict(),
            },
            environment=self.environment(),
        )

    def restore(self, saved: Checkpoint) -> None:
        """Put a checkpoint back; warns when the machine's side of it has changed."""
        self.model.load_state_dict(saved.weights)
        self.optimizer.load_state_dict(saved.training["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved.training["scaler"])
        self.batches.load_state_dict(saved.training["batches"])
        restore_random(saved.training["random"], self.device)
        self.step = self.saved_step = saved.step
        self.saved_in = saved.path
        now = self.environment()
        changed = [f"{name} {saved.environment.get(name)} -> {now[name]}" for name in now if now[name] != saved.environment.get(name)]
        if changed:
            warnings.warn(f"resuming under other conditions ({', '.join(changed)}): the run goes on, but not bit for bit", UserWarning, stacklevel=4)

    def go(self, out: Path | None, stop_at: int, on_step: Callable[[dict[str, Any]], None] | None) -> Result:
        """Steps until ``stop_at`` or an interrupt, with everything that happens around them."""
        config, result = self.config, Result(self.config, self.step, self.step, model=self.model, tokenizer=self.corpus.tokenizer)
        result.checkpoint = self.saved_in
        log, progress = StepLog(out, self.step + 1), Progress(config.progress, config.steps, self.step)
        clock: list[float] = []
        try:
            with Interrupt() as interrupt:
                while self.step < stop_at and not interrupt.requested:
                    began = time.perf_counter()
                    entry = self._step()
                    clock.append(time.perf_counter() - began)
                    entry["seconds"] = clock[-1]
                    entry["tokens_per_second"] = config.batch * config.accumulate * config.context / clock[-1]
                    if self.step == stop_at or (config.eval_every and self.step % config.eval_every == 0):
                        entry["val_loss"] = evaluate(self.model, self.val_batches, config.eval_batches, self.device, self.dtype)
                        progress.say(f"step {self.step}: validation loss {entry['val_loss']:.4f}")
                    if out is not None and config.save_every and self.step % config.save_every == 0:
                        result.checkpoint = self._save(out)
                    self._record(entry, result)
                    log.write(entry)
                    progress.step(entry)
                    if on_step is not None:
                        on_step(entry)
                if out is not None and self.saved_step != self.step:  # here, so that an interrupt at any moment is saved too
                    result.checkpoint = self._save(out)
                result.interrupted = interrupt.requested
        finally:
            log.close()
            progress.close()
        steady = clock[1:] or clock
        if steady:
            result.tokens_per_second = len(steady) * config.batch * config.accumulate * config.context / sum(steady)
        return result

    def _save(self, out: Path) -> Path:
        path = save_checkpoint(out, self.capture())
        self.saved_step = self.step
        return path

    def _record(self, entry: dict[str, Any], result: Result) -> None:
        result.step, result.peak_memory, result.reconstruction = self.step, entry["peak_memory"], entry["reconstruction"]
        result.losses.append(entry["loss"])
        if "val_loss" in entry:
            result.val_losses.append((self.step, entry["val_loss"]))
        if entry["exact"] is not None:
            result.exact = entry["exact"] and result.exact is not False
            result.max_error = _worst(result.max_error, entry["max_error"])

    def _step(self) -> dict[str, Any]:
        """One optimiser step over ``accumulate`` micro-batches; returns its log entry."""
        config = self.config
        rate = learning_rate(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.model.train()
        loss, exact, max_error, headroom = 0.0, None, 0.0, math.inf
        for x, y in self._micro_batches():
            with autocast(self.device, self.dtype):
                part = self.model(x, y)
            self.scaler.scale(part / config.accumulate).backward()
            loss += part.item() / config.accumulate
            report = self.model.trunk.report
            if report is not None:
                exact, max_error = report.exact and exact is not False, _worst(max_error, report.max_error)
                headroom = min(headroom, report.headroom)
        self._check_finite(loss)
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), config.clip if config.clip else math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        entry = {
            "step": self.step, "loss": loss, "lr": rate, "grad_norm": float(norm), "peak_memory": peak_memory(self.device),
            "exact": exact, "max_error": max_error, "headroom": headroom, "reconstruction": self._reconstruction(),
        }  # fmt: skip
        return entry | ({"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {})

    def _micro_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.config.accumulate):
            x, y = self.batches.next()
            yield x.to(self.device), y.to(self.device)

    def _check_finite(self, loss: float) -> None:
        """A GradScaler may skip single steps; without one, or when its scale has collapsed, the run is over.

        Raises:
            DivergedError: before the optimiser has touched the weights.
        """
        collapsed = self.scaler.is_enabled() and self.scaler.get_scale() < 2.0**-14
        if math.isfinite(loss) and not collapsed:
            return
        if not self.scaler.is_enabled() or collapsed:
            raise DivergedError(
                f"the loss of step {self.step + 1} is {loss}; lower --lr, lengthen --warmup, or use --dtype float32, and resume from the last checkpoint"
            )

    def _reconstruction(self) -> str:
        report = self.model.trunk.report
        if report is not None:
            return str(report)
        spec = parse_scheme(self.config.scheme)
        return {"plain": "stored", "checkpoint": "recomputed"}.get(spec.name, "no layers")
