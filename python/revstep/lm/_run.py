"""One training run: its optimiser and schedule, model and data, what a step does, the loop over the steps."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from .._fused_step import fused_step
from .._models.training import worst
from .._specs import parse_scheme, parse_state
from ..errors import StateOverflowError
from ..state import FixedPoint
from ._architectures import LanguageModel, make_model
from ._checkpoint import Checkpoint, save_checkpoint, what_is_left
from ._config import TrainConfig
from ._data import Batches, Corpus
from ._guard import Guard, Measured, joined
from ._parallel import Engine, autocast, capture_random, restore_random
from ._session import DivergedError, Interrupt, Progress, Result, StepLog, peak_memory


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW in two groups: weights of two or more dimensions decay, biases and LayerNorms do not."""
    parameters = [p for _, p in sorted(model.named_parameters()) if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2))


def clip_gradients(model: nn.Module, limit: float) -> float:
    """Scale the gradients so that their norm is at most ``limit`` (0: leave them) -> the norm before, of all
    processes' shards where they are sharded.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm([p.grad for p in parameters])
    # A DTensor; its module takes half a second to import.
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    nn.utils.clip_grads_with_norm_(parameters, limit or math.inf, norm)
    return float(norm)


def learning_rate(config: TrainConfig, step: int) -> float:
    """Rate of step ``step`` (0-based): linear up to ``lr`` over ``warmup`` steps, then a cosine to ``min_lr``
    at ``steps``. A pure function, so resuming keeps it.
    """
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1 + math.cos(math.pi * min(1.0, done)))


# ------------------------------------------------------------------------------------------------------------
# One training run: its model, optimiser and data, what a step of it does, and the loop over the steps with
# all that happens around them.


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    batches: Batches,
    count: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    engine: Engine | None = None,
) -> float:
    """Mean loss over ``count`` batches at fixed places of ``batches``; leaves the model's mode and every
    generator as they were.

    With ``engine`` every process takes its rows, and all get the mean.
    """
    engine = engine or Engine(device)
    training = model.training
    model.eval()
    try:
        with autocast(device, dtype, engine.cache_casts):
            own = (
                sum(
                    float(model(engine.rows(x).to(device), engine.rows(y).to(device)))
                    for x, y in batches.spread(count)
                )
                / count
            )
    finally:
        model.train(training)
    return joined(engine.exchange(Measured(loss=own).pack()))["loss"]


class Run:
    """Model, optimiser and data of one run, and the loop over them; in a group of processes, this one's part
    of it.
    """

    def __init__(self, config: TrainConfig, corpus: Corpus, engine: Engine):
        self.config = config
        self.corpus = corpus
        self.engine = engine
        self.device, self.dtype = engine.device, getattr(torch, config.dtype)
        half = config.dtype == "float16"
        # With a loss scale an overflow is part of the method: the state passes it on as NaN and the scaler
        # skips the step. So it does where several processes skip bad steps: one that left its forward pass
        # would leave the others waiting in theirs, and NaN reaches them all.
        passed_on = half or (engine.size > 1 and config.on_bad_step == "skip")
        state = parse_state(config.state).make(on_nonfinite="propagate" if passed_on else "raise")
        train_part, val_part = corpus.split(config.val_fraction, config.context)
        torch.manual_seed(engine.seed(config.seed))
        self.model = make_model(
            config.shape(corpus.tokenizer.vocab), config.stack_options(state=state), seed=config.seed
        )
        self.called = engine.place(self.model)  # what a training step calls
        self.optimizer = make_optimizer(self.model, config)
        self.fused = fused_step(self.optimizer, clip_norm=config.clip or None) if config.fused_step else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.batches = Batches(train_part, config.batch, config.context, config.seed)
        self.val_batches = Batches(val_part, config.batch, config.context, config.seed)
        self.guard = Guard(config, state, tells=engine.rank == 0)
        self.step = 0
        self.saved_step = -1
        self.saved_in: Path | None = None
        self.out = Path(config.out) if config.out else None

    def environment(self) -> dict[str, Any]:
        """What equal bits depend on besides the config."""
        return {
            "torch": str(torch.__version__),
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "parallel": self.engine.name,
        }

    def capture(self) -> Checkpoint:
        """Everything the rest of the run depends on; whole on the first process, an outline elsewhere."""
        whole = self.engine.whole
        random = self.engine.collect(capture_random(self.device))
        return Checkpoint(
            step=self.step,
            config={**self.config.to_dict(), "vocab": self.corpus.tokenizer.vocab},
            weights=tree_map_only(Tensor, whole, dict(self.model.state_dict())),
            training={
                "optimizer": tree_map_only(Tensor, whole, self.optimizer.state_dict()),
                "scaler": self.scaler.state_dict(),
                "random": random[0],
                "random_of_others": random[1:],
                "batches": self.batches.state_dict(),
                "guard": self.guard.state_dict(),
            },
            environment=self.environment(),
        )

    def restore(self, saved: Checkpoint) -> None:
        """Put a checkpoint back; warns when the machine's side of it has changed."""
        mine = self.model.state_dict()
        self.model.load_state_dict(
            {name: self.engine.part(tensor, mine[name]) for name, tensor in saved.weights.items()}
        )
        self._restore_optimizer(saved.training["optimizer"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(saved.training["scaler"])
        self.batches.load_state_dict(saved.training["batches"])
        self._restore_random(saved)
        if "guard" in saved.training:  # not in checkpoints from before there was one
            self.guard.load_state_dict(saved.training["guard"])
        self.step = self.saved_step = saved.step
        self.saved_in = saved.path
        now = self.environment()
        # Checkpoints from before there was a choice do not say.
        before = {"parallel": "none", **saved.environment}
        changed = [
            f"{name} {before.get(name)} -> {now[name]}" for name in now if now[name] != before.get(name)
        ]
        if changed and self.engine.rank == 0:
            warnings.warn(
                f"resuming under other conditions ({', '.join(changed)}): the run goes on, but not bit"
                " for bit",
                UserWarning,
                stacklevel=4,
            )

    def _restore_optimizer(self, saved: dict[str, Any]) -> None:
        owners = [p for group in self.optimizer.param_groups for p in group["params"]]
        state = {
            i: {
                name: (
                    self.engine.part(value, owners[i]) if isinstance(value, Tensor) and value.ndim else value
                )
                for name, value in of.items()
            }
            for i, of in saved["state"].items()
        }
        self.optimizer.load_state_dict({**saved, "state": state})

    def _restore_random(self, saved: Checkpoint) -> None:
        states = [saved.training["random"], *saved.training.get("random_of_others", ())]
        if self.engine.rank < len(states):
            restore_random(states[self.engine.rank], self.device)
        else:  # more processes than before
            torch.manual_seed(self.engine.seed(self.config.seed, saved.step))

    def go(self, out: Path | None, stop_at: int, on_step: Callable[[dict[str, Any]], None] | None) -> Result:
        """Steps until ``stop_at``, an interrupt or the end of the states' range, with everything that happens
        around them.
        """
        config = self.config
        first = self.engine.rank == 0
        result = Result(
            config,
            self.step,
            self.step,
            model=self.model,
            tokenizer=self.corpus.tokenizer,
            rank=self.engine.rank,
        )
        result.checkpoint = self.saved_in
        log = StepLog(out if first else None, self.step + 1)
        progress = Progress(config.progress and first, config.steps, self.step)
        clock: list[float] = []
        near = False
        try:
            with Interrupt(repeated=self.engine.size > 1) as interrupt:
                while self.step < stop_at and not near and not self.engine.most(interrupt.signal):
                    began = time.perf_counter()
                    entry = self._step()
                    clock.append(time.perf_counter() - began)
                    entry["seconds"] = clock[-1]
                    entry["tokens_per_second"] = config.batch * config.accumulate * config.context / clock[-1]
                    if self.step == stop_at or (config.eval_every and self.step % config.eval_every == 0):
                        entry["val_loss"] = self._validate()
                        progress.say(f"step {self.step}: validation loss {entry['val_loss']:.4f}")
                    self._note(entry, result)
                    log.write(entry)
                    progress.step(entry)
                    if out is not None and config.save_every and self.step % config.save_every == 0:
                        result.checkpoint = self._save(out, log)
                    near = self.guard.near(entry["headroom"], entry["steps_left"])
                    if on_step is not None:
                        on_step(entry)
                # Here, so that an interrupt at any moment is saved too.
                if out is not None and self.saved_step != self.step:
                    result.checkpoint = self._save(out, log)
                result.signal = self.engine.most(interrupt.signal)
                if near and self.step < stop_at and not result.interrupted:
                    raise self.guard.stop(self.step, entry["headroom"], out is not None)
        finally:
            log.close()
            progress.close()
        steady = clock[1:] or clock
        if steady:
            result.tokens_per_second = (
                len(steady) * config.batch * config.accumulate * config.context / sum(steady)
            )
        return result

    def _validate(self) -> float:
        try:
            return evaluate(
                self.model, self.val_batches, self.config.eval_batches, self.device, self.dtype, self.engine
            )
        except StateOverflowError as error:
            words = f"validation after step {self.step}: {error.fault}. {what_is_left(self.out)}"
            if isinstance(error.advised, FixedPoint):
                words += f". To get past it: --state {error.advised.spec}"
            raise error.again(words) from error

    def _save(self, out: Path, log: StepLog) -> Path:
        captured = self.capture()

        def write() -> Path:
            # First: the steps of a checkpoint are not done again, so their lines must not be missing
            log.flush()
            return save_checkpoint(out, captured)

        path = self.engine.first(write)
        self.saved_step = self.step
        return path

    def _note(self, entry: dict[str, Any], result: Result) -> None:
        result.step = self.step
        result.peak_memory = entry["peak_memory"]
        result.reconstruction = entry["reconstruction"]
        result.losses.append(entry["loss"])
        result.skipped += entry["skipped"] is not None
        if "val_loss" in entry:
            result.val_losses.append((self.step, entry["val_loss"]))
        if entry["exact"] is not None:
            result.exact = entry["exact"] and result.exact is not False
            result.max_error = worst(result.max_error, entry["max_error"])

    def _step(self) -> dict[str, Any]:
        """One optimiser step; returns its log entry."""
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        batches = self._micro_batches()
        overflow = None
        try:
            measured = self._gradients(batches)
        except StateOverflowError as error:
            overflow = error
            measured = Measured(loss=math.nan, max_error=None, headroom=math.nan)
            for _ in batches:  # the data move on as they do after any step
                pass
        measured.peak_memory = peak_memory(self.device)
        fields = joined([measured.pack()] if overflow is not None else self.engine.exchange(measured.pack()))
        norm, skipped = self._update(fields["loss"], overflow)
        self.step += 1
        entry = {
            "step": self.step, "lr": rate, "grad_norm": norm, **fields,
            "reconstruction": self._reconstruction() if overflow is None else "states left their range",
            "skipped": skipped, "steps_left": self.guard.seen(fields["headroom"]),
        }  # fmt: skip
        return entry | ({"loss_scale": self.scaler.get_scale()} if self.scaler.is_enabled() else {})

    def _gradients(self, batches: Iterator[tuple[Tensor, Tensor]]) -> Measured:
        """Forward and backward of this process's rows of ``accumulate`` micro-batches; returns what they
        measured.
        """
        many = self.config.accumulate
        measured = Measured()
        self.model.train()
        for i, (x, y) in enumerate(batches, 1):
            with self.engine.accumulating(self.called, last=i == many):
                with autocast(self.device, self.dtype, self.engine.cache_casts):
                    part = self.called(x, y)
                self.scaler.scale(part / many).backward()
            measured.take(part.item() / many, self.model.trunk.report)
        return measured

    def _update(self, loss: float, overflow: StateOverflowError | None) -> tuple[float, str | None]:
        """Clip the gradients and let the optimiser use them, unless something is not finite; returns their
        norm before, and why they were not used.

        Raises:
            DivergedError, StateOverflowError: the run ends here; the optimiser has not touched the weights
            (with ``fused_step`` none but those whose gradient was finite).
        """
        norm = math.nan
        step = self.step + 1
        if overflow is None:
            self.scaler.unscale_(self.optimizer)
            norm = clip_gradients(self.model, self.config.clip) if self.fused is None else self._fused_norm()
        fault = self.guard.fault(step, loss, norm) if overflow is None else overflow.fault
        if self.scaler.is_enabled():  # its way: it looks at the gradients itself, and mends its scale
            fault = self._scaled_step(step, fault)
        elif fault:
            self.guard.drop(step, fault, what_is_left(self.out), overflow)
        else:
            self.guard.passed()
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm, fault or None

    def _fused_norm(self) -> float:
        """Of the gradients that backward has used; NaN where some were not finite and were not used."""
        return math.nan if self.fused.skipped or self.fused.norm is None else self.fused.norm

    def _micro_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(self.config.accumulate):
            x, y = self.batches.next()
            yield self.engine.rows(x).to(self.device), self.engine.rows(y).to(self.device)

    def _scaled_step(self, step: int, fault: str) -> str:
        """The optimiser's step by way of the scaler -> ``fault`` where the scaler skipped it, else "".

        Raises:
            DivergedError: the scale has collapsed: single steps may be skipped, this run is over.
        """
        before = self.scaler.get_scale()
        if before < 2.0**-14:
            raise DivergedError(
                f"the loss scale has fallen to {before:.3g} at step {step}: no step is finite any more."
                f" {what_is_left(self.out)}"
            )
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return (fault or "the gradient overflowed") if self.scaler.get_scale() < before else ""

    def _reconstruction(self) -> str:
        report = self.model.trunk.report
        if report is not None:
            return str(report)
        spec = parse_scheme(self.config.scheme)
        return {"plain": "stored", "checkpoint": "recomputed"}.get(
            spec.name, "not checked" if self.config.layers else "no layers"
        )
