"""One training run: its model, optimiser and data, what a step of it does, and the loop over the steps with all that happens around them."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StateOverflowError
from ..specs import parse_scheme, parse_state
from .checkpoint import Checkpoint, save_checkpoint, what_is_left
from .config import TrainConfig
from .data import Batches, Corpus
from .device import autocast, capture_random, find_device, restore_random
from .guard import Guard
from .model import LanguageModel, make_model
from .optim import learning_rate, make_optimizer
from .result import DivergedError, Result
from .session import Interrupt, Progress, StepLog, peak_memory


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


def _worst(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(a, b)  # an error that was not measured stays unknown


class Run:
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
        self.guard = Guard(config, state)
        self.step = 0
        self.saved_step = -1
        self.saved_in: Path | None = None
        self.out = Path(config.out) if config.out else None

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
                "guard": self.guard.state_dict(),
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
        if "guard" in saved.training:  # not in checkpoints from before there was one
            self.guard.load_state_dict(saved.training["guard"])
        self.step = self.saved_step = saved.step
        self.saved_in = saved.path
        now = self.environment()
        changed = [f"{name} {saved.environment.get(name)} -> {now[name]}" for name in now if now[name] != saved.environment.get(name)]
        if changed:
            warnings.warn(f"resuming under other conditions ({', '.join(changed)}): the run goes on, but not bit for bit", UserWarning, stacklevel=4)

    def go(self, out: Path | None, stop_at: int, on_step: Callable[[dict[str, Any]], None] | None) -> Result:
        """Steps until ``stop_at``, an interrupt or the end of the states' range, with everything that happens around them."""
        config, result = self.config, Result(self.config, self.step, self.step, model=self.model, tokenizer=self.corpus.tokenizer)
        result.checkpoint = self.saved_in
        log, progress = StepLog(out, self.step + 1), Progress(config.progress, config.steps, self.step)
        clock: list[float] = []
        near = False
        try:
            with Interrupt() as interrupt:
                while self.step < stop_at and not interrupt.requested and not near:
                    began = time.perf_counter()
                    entry = self._step()
                    clock.append(time.perf_counter() - began)
                    entry["seconds"] = clock[-1]
                    entry["tokens_per_second"] = config.batch * config.accumulate * config.context / clock[-1]
                    if self.step == stop_at or (config.eval_every and self.step % config.eval_every == 0):
                        entry["val_loss"] = evaluate(self.model, self.val_batches, config.eval_batches, self.device, self.dtype)
                        progress.say(f"step {self.step}: validation loss {entry['val_loss']:.4f}")
                    self._record(entry, result)
                    log.write(entry)
                    progress.step(entry)
                    if out is not None and config.save_every and self.step % config.save_every == 0:
                        result.checkpoint = self._save(out, log)
                    near = self.guard.near(entry["headroom"], entry["steps_left"])
                    if on_step is not None:
                        on_step(entry)
                if out is not None and self.saved_step != self.step:  # here, so that an interrupt at any moment is saved too
                    result.checkpoint = self._save(out, log)
                result.signal = interrupt.signal
                if near and self.step < stop_at and not interrupt.requested:
                    raise self.guard.stop(self.step, entry["headroom"], out is not None)
        finally:
            log.close()
            progress.close()
        steady = clock[1:] or clock
        if steady:
            result.tokens_per_second = len(steady) * config.batch * config.accumulate * config.context / sum(steady)
        return result

    def _save(self, out: Path, log: StepLog) -> Path:
        log.flush()  # first: the steps of a checkpoint are not done again, so their lines must not be missing
        path = save_checkpoint(out, self.capture())
        self.saved_step = self.step
        return path

    def _record(self, entry: dict[str, Any], result: Result) -> None:
        result.step, result.peak_memory, result.reconstruction = self.step, entry["peak_memory"], entry["reconstruction"]
        result.losses.append(entry["loss"])
        result.skipped += entry["skipped"] is not None
        if "val_loss" in entry:
            result.val_losses.append((self.step, entry["val_loss"]))
        if entry["exact"] is not None:
            result.exact = entry["exact"] and result.exact is not False
            result.max_error = _worst(result.max_error, entry["max_error"])

    def _step(self) -> dict[str, Any]:
        """One optimiser step; returns its log entry."""
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches, overflow = self._micro_batches(), None
        try:
            measured = self._gradients(batches)
        except StateOverflowError as error:
            overflow, measured = error, {"loss": math.nan, "exact": None, "max_error": None, "headroom": math.nan}
            for _ in batches:  # the data move on as they do after any step
                pass
        norm, skipped = self._update(measured["loss"], overflow)
        self.step += 1
        entry = {
            "step": self.step, "lr": rate, "grad_norm": norm, "peak_memory": peak_memory(self.device), **measured,
            "reconstruction": self._reconstruction() if overflow is None else "states left their range",
            "skipped": skipped, "steps_left": self.guard.seen(measured["headroom"]),
        }  # fmt: skip
        return entry | ({"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {})

    def _gradients(self, batches: Iterator[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Forward and backward of ``accumulate`` micro-batches; returns what they measured, as it is logged."""
        config = self.config
        self.model.train()
        loss, exact, max_error, headroom = 0.0, None, 0.0, math.inf
        for x, y in batches:
            with autocast(self.device, self.dtype):
                part = self.model(x, y)
            self.scaler.scale(part / config.accumulate).backward()
            loss += part.item() / config.accumulate
            report = self.model.trunk.report
            if report is not None:
                exact, max_error = report.exact and exact is not False, _worst(max_error, report.max_error)
                headroom = min(headroom, report.headroom)
        return {"loss": loss, "exact": exact, "max_error": max_error, "headroom": headroom}

    def _update(self, loss: float, overflow: StateOverflowError | None) -> tuple[float, str | None]:
        """Clip the gradients and let the optimiser use them, unless something is not finite; returns their norm before, and why they were not used.

        Raises:
            DivergedError, StateOverflowError: the run ends here; the optimiser has not touched the weights.
        """
        norm, step = math.nan, self.step + 1
        if overflow is None:
            self.scaler.unscale_(self.optimizer)
            norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip if self.config.clip else math.inf))
        fault = self.guard.fault(step, loss, norm) if overflow is None else str(overflow)
        if self.scaler.is_enabled():  # its way: it looks at the gradients itself, and mends its scale
            fault = self._scaled_step(step, fault)
        elif fault:
            self.guard.drop(step, fault, what_is_left(self.out), overflow)
        else:
            self.guard.passed()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, fault or None

    def _micro_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.config.accumulate):
            x, y = self.batches.next()
            yield x.to(self.device), y.to(self.device)

    def _scaled_step(self, step: int, fault: str) -> str:
        """The optimiser's step by way of the scaler -> ``fault`` where the scaler skipped it, else "".

        Raises:
            DivergedError: the scale has collapsed: single steps may be skipped, this run is over.
        """
        before = self.scaler.get_scale()
        if before < 2.0**-14:
            raise DivergedError(f"the loss scale has fallen to {before:.3g} at step {step}: no step is finite any more. {what_is_left(self.out)}")
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return (fault or "the gradient overflowed") if self.scaler.get_scale() < before else ""

    def _reconstruction(self) -> str:
        report = self.model.trunk.report
        if report is not None:
            return str(report)
        spec = parse_scheme(self.config.scheme)
        return {"plain": "stored", "checkpoint": "recomputed"}.get(spec.name, "not checked" if self.config.layers else "no layers")
