"""Training side by side: the same initial weights, the same batches, one step of each stack a round."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from revstep._models.training import Tally
from revstep.errors import AmplificationWarning, RevstepError
from revstep.lm._architectures import GPT
from revstep.lm._config import TrainConfig
from revstep.lm._parallel import autocast
from revstep.lm._run import evaluate, make_optimizer

from .settings import Settings, Text

#: Rounds after which the number of steps is first worked out (the first of them warms up and is not timed).
TIMED_ROUNDS = 5
#: Steps of linear warm-up; the share of the steps after which the constant rate falls linearly to a tenth;
#: largest gradient norm.
WARMUP, STEADY, CLIP = 10, 0.7, 1.0
#: Validations along the way beside the first and the last, and batches of each, the same for all stacks.
POINTS, VALIDATION_BATCHES = 7, 16
#: GPT-2's initial embeddings times this: at std 0.1 instead of 0.02 the first hundreds of steps get further.
EMBEDDING_SCALE = 5.0


@dataclass(kw_only=True)
class Racer(Tally):
    """One stack in training, with what was seen of it.

    Attributes:
        losses, seconds: of each step; points: (steps done, validation loss).
        failure: why it stopped before the end, or "".
    """

    name: str
    model: GPT
    optimizer: torch.optim.Optimizer
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    points: list[tuple[int, float]] = field(default_factory=list)
    failure: str = ""

    @property
    def step_seconds(self) -> float:
        """Median over the steps, the first left out (it warms up)."""
        return statistics.median(self.seconds[1:] or self.seconds or [float("nan")])

    def step(self, x: Tensor, y: Tensor, rate: float, dtype: torch.dtype) -> None:
        """One optimiser step. Raises what the stack raises, and FloatingPointError when the loss is not
        finite.
        """
        began = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with autocast(x.device, dtype):
            loss = self.model(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        value = loss.item()  # waits for the device
        if not value < float("inf"):
            raise FloatingPointError(f"the loss of step {len(self.losses) + 1} is {value}")
        self.seconds.append(time.perf_counter() - began)
        self.losses.append(value)
        self.add(self.model.trunk.report)


class Race:
    """All stacks on the same batches.

    Attributes:
        racers: in the order of the table; steps: of each stack once known, else 0; tokens: of one step.
    """

    def __init__(self, settings: Settings, text: Text, device: torch.device, dtype: torch.dtype):
        self.settings, self.text, self.device, self.dtype = settings, text, device, dtype
        self.tokens = settings.batch * settings.context
        self.steps = settings.steps
        self.racers = [self._enter(name) for name in settings.stacks()]

    def _enter(self, name: str) -> Racer:
        model = build(name, self.settings, self.text.vocab).to(self.device)
        return Racer(
            name=name,
            model=model,
            optimizer=make_optimizer(model, TrainConfig(lr=self.settings.lr, min_lr=0.0, out="")),
        )

    def running(self) -> list[Racer]:
        return [r for r in self.racers if not r.failure]

    def rounds(self, left: Callable[[], float]) -> Iterator[int]:
        """Train; yields the rounds done after each. ``left()``: seconds that may still be used; the number of
        steps follows from it.
        """
        began = time.perf_counter()
        self.validate()
        point, next_point, done = time.perf_counter() - began, TIMED_ROUNDS, 0
        while done < (self.settings.steps or self.steps or TIMED_ROUNDS):
            x, y = (t.to(self.device) for t in self.text.train.next())
            rate = self.settings.lr * rate_factor(done, self.steps)
            turn = done % len(self.racers)
            for racer in self.racers[turn:] + self.racers[:turn]:
                self._try(racer, lambda r: r.step(x, y, rate, self.dtype))  # noqa: B023  (called at once)
            done += 1
            if (
                not self.settings.steps
                and done >= TIMED_ROUNDS
                and (not self.steps or done <= STEADY * self.steps)
            ):
                self._fix_steps(done, left(), point)
            if done >= next_point and done + self.steps / (2 * POINTS) < self.steps:
                self.validate()
                next_point = done + max(1, round(self.steps / (POINTS + 1)))
            yield done
        self.validate()

    def _fix_steps(self, done: int, left: float, point: float) -> None:
        """As many steps as fit, from what the last rounds took; the validations and the examination still to
        come are taken off first.

        Asked again while the rate is constant: up to there the number of steps has not entered the training.
        """
        a_round = sum(statistics.mean(r.seconds[1:][-20:]) for r in self.running() if len(r.seconds) > 1)
        points = POINTS * (1 - done / max(done, self.steps)) if self.steps else POINTS
        after = point * (points + 1) + 12 * a_round
        fit = int((left - after) / a_round) if a_round else 0
        self.steps = max(done + fit, math.ceil(done / STEADY))

    def validate(self) -> None:
        """Add a point to each curve."""
        for racer in self.running():
            self._try(
                racer,
                lambda r: r.points.append(
                    (
                        len(r.losses),
                        evaluate(r.model, self.text.validation, VALIDATION_BATCHES, self.device, self.dtype),
                    )
                ),
            )

    @staticmethod
    def _try(racer: Racer, act: Callable[[Racer], None]) -> None:
        """A stack that cannot go on says why and drops out; the others continue."""
        if racer.failure:
            return
        try:
            act(racer)
        except (RevstepError, FloatingPointError) as error:
            racer.failure = f"{type(error).__name__}: {error}"
            racer.optimizer.zero_grad(set_to_none=True)


def rate_factor(step: int, steps: int) -> float:
    """Share of the peak learning rate in step ``step`` (0-based) of ``steps`` (0: not known yet, before the
    rate falls).
    """
    warm = min(1.0, (step + 1) / WARMUP)
    fall = (step / steps - STEADY) / (1 - STEADY) if steps else 0.0
    return warm * (1.0 - 0.9 * min(1.0, max(0.0, fall)))


def build(name: str, settings: Settings, vocab: int) -> GPT:
    """The model with this trunk; its initial weights depend on the settings alone."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmplificationWarning)
        model = GPT(settings.model(vocab), name, seed=settings.seed)
    with torch.no_grad():
        model.tokens.weight.mul_(EMBEDDING_SCALE)
    return model


def choose(settings: Settings, text: Text, device: torch.device) -> tuple[torch.dtype, int, dict[str, float]]:
    """Block dtype and number of CPU threads for this machine, by timing passes of the plain stack, and the
    timings.

    One thread is taken when it is faster: small models on a busy machine lose more to waiting than they gain
    from a second core. bfloat16 is taken when it is at most 10 % slower than float32.
    """
    all_threads = torch.get_num_threads()
    model = build("plain", settings, text.vocab).to(device)
    x, y = (t.to(device) for t in next(text.validation.spread(1)))
    timings: dict[tuple[torch.dtype, int], float] = {}

    def timed(dtype: torch.dtype, threads: int) -> float:
        torch.set_num_threads(threads)
        timings[dtype, threads] = _time_pass(model, x, y, dtype)
        return timings[dtype, threads]

    try:
        dtype = torch.float32 if settings.dtype == "auto" else getattr(torch, settings.dtype)
        threads = min(
            dict.fromkeys([1, all_threads] if device.type == "cpu" else [all_threads]),
            key=lambda t: timed(dtype, t),
        )
        if settings.dtype == "auto" and timed(torch.bfloat16, threads) <= 1.1 * timings[dtype, threads]:
            dtype = torch.bfloat16
    finally:
        torch.set_num_threads(all_threads)
    said = {
        f"{str(d).removeprefix('torch.')}, {t} thread{'s' * (t > 1)}": seconds
        for (d, t), seconds in timings.items()
    }
    return dtype, threads, said


def _time_pass(model: GPT, x: Tensor, y: Tensor, dtype: torch.dtype, budget: float = 1.0) -> float:
    """Seconds of a forward and backward pass: the least of up to four after one that warms up, within about
    ``budget`` seconds.
    """
    seconds: list[float] = []
    while len(seconds) < 2 or (len(seconds) < 5 and sum(seconds) < budget):
        began = time.perf_counter()
        with autocast(x.device, dtype):
            loss = model(x, y)
        loss.backward()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])
