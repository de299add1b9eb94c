"""What ``revstep bench quality`` compares: its variants, the case with its sizes, and one training of a
variant with a seed and a learning rate.
"""

from __future__ import annotations

import math
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from revstep.errors import (
    AmplificationWarning,
    ConfigError,
    ReconstructionWarning,
    RevstepError,
    StateOverflowError,
)
from revstep.lm._config import TrainConfig
from revstep.lm._data import Batches, Corpus, prepare
from revstep.lm._guard import HeadroomError
from revstep.lm._parallel import start
from revstep.lm._run import Run
from revstep.lm._session import DivergedError


def variants() -> dict[str, tuple[str, str, str]]:
    """Every variant by name, ``(scheme, state, dtype)``: plain, every scheme of the registry at its defaults,
    and other states and autocast.
    """
    from revstep.schemes._base import available

    found = {"plain": ("plain", "fixed32", "float32"), "plain:bf16": ("plain", "fixed32", "bfloat16")}
    found |= {name: (name, "fixed32", "float32") for name in sorted(available())}
    for scheme in ("blend", "midpoint"):
        found[f"{scheme}:float32"] = (scheme, "float32", "float32")
    found |= {
        "blend:fixed32:12": ("blend", "fixed32:12", "float32"),
        "blend:fixed64": ("blend", "fixed64", "float32"),
    }
    return found | {"blend:bf16": ("blend", "fixed32", "bfloat16")}


@dataclass(frozen=True)
class QualityCase:
    """What is trained and how often.

    Attributes:
        variants: some of :func:`variants`; plain, which the others are compared with, is one of them.
        layers, width, heads, context, batch: the GPT and its batch; bytes are its tokens.
        steps: of an evaluated run; tune_steps: of a run that tries a rate, with a whole schedule of its own.
        rates: the grid. tune_seed: seed of those runs. seeds: evaluated.
        points: validation losses on a curve. eval_batches: batches of a validation.
        max_bytes: of the standard library's sources (0: all).
        device: "cpu" or "cuda".

    Raises:
        ConfigError: a variant that is not known or plain missing; fewer than three rates; fewer than two
            seeds, or the tuning seed among them; sizes.
    """

    variants: tuple[str, ...] = ()
    layers: int = 6
    width: int = 32
    heads: int = 2
    context: int = 64
    batch: int = 16
    steps: int = 200
    tune_steps: int = 200
    rates: tuple[float, ...] = (4e-3, 8e-3, 1.6e-2)
    tune_seed: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)
    points: int = 5
    eval_batches: int = 16
    max_bytes: int = 4_000_000
    device: str = "cpu"

    def __post_init__(self) -> None:
        known = variants()
        object.__setattr__(self, "variants", tuple(self.variants) or tuple(known))
        if unknown := [name for name in self.variants if name not in known]:
            raise ConfigError(f"variant {unknown[0]!r} is not known, expected some of {'; '.join(known)}")
        if "plain" not in self.variants:
            raise ConfigError(
                f"variants are {'; '.join(self.variants)}, expected plain among them: the others are compared"
                " with it"
            )
        if len(set(self.rates)) < 3 or min(self.rates) <= 0:
            raise ConfigError(
                f"rates are {self.rates}, expected at least three different positive learning rates"
            )
        if (
            len(set(self.seeds)) < 2
            or len(set(self.seeds)) != len(self.seeds)
            or self.tune_seed in self.seeds
        ):
            raise ConfigError(
                f"seeds are {self.seeds} and the tuning seed is {self.tune_seed}, expected two seeds or more,"
                " each once, and the tuning seed not among them"
            )
        if not 1 <= self.points <= self.steps or self.tune_steps < 1:
            raise ConfigError(
                f"{self.points} points, {self.steps} steps and {self.tune_steps} to tune, expected at least"
                " one step and one point, and no more points than steps"
            )

    @classmethod
    def default(cls, device: str = "cpu", **changes: Any) -> QualityCase:
        """The sizes of the device: on CUDA 21 million parameters and 50 million tokens."""
        large = {
            "layers": 12,
            "width": 384,
            "heads": 6,
            "context": 512,
            "batch": 32,
            "steps": 3052,
            "tune_steps": 3052,
            "rates": (5e-4, 1e-3, 2e-3),
            "points": 20,
            "max_bytes": 0,
        }
        return cls(**{**(large if device.startswith("cuda") else {}), "device": device, **changes})

    def config(self, name: str, seed: int, rate: float, steps: int) -> TrainConfig:
        scheme, state, dtype = variants()[name]
        return TrainConfig(
            tokenizer="bytes",
            scheme=scheme,
            state=state,
            dtype=dtype,
            layers=self.layers,
            width=self.width,
            heads=self.heads,
            context=self.context,
            batch=self.batch,
            steps=steps,
            lr=rate,
            min_lr=rate / 10,
            warmup=steps // 10,
            eval_every=max(1, steps // self.points) if steps == self.steps else 0,
            eval_batches=self.eval_batches,
            save_every=0,
            seed=seed,
            device=self.device,
            out="",
            progress=False,
        )


class Followed(Batches):
    """Batches that remember, as one number, what they were and in which order."""

    order = 0

    def next(self) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = super().next()
        self.order = zlib.crc32(x.numpy().tobytes(), self.order)
        return x, y


@contextmanager
def texts(case: QualityCase) -> Iterator[Corpus]:
    with tempfile.TemporaryDirectory(prefix="revstep-") as folder:
        corpus = prepare(folder, tokenizer="bytes", max_bytes=case.max_bytes)
        yield corpus
        del corpus  # its file is mapped, and some systems do not delete such a one


@contextmanager
def without_warnings() -> Iterator[None]:
    """Float states warn in every step that they are not rebuilt exactly; ``exact`` and ``max_error`` of a run
    say it once.
    """
    with warnings.catch_warnings():
        for kind in (AmplificationWarning, ReconstructionWarning):
            warnings.simplefilter("ignore", kind)
        yield


def batches_of(run: Run, config: TrainConfig) -> Followed:
    """The training batches of a run, by its seed alone."""
    return Followed(run.batches.tokens, config.batch, config.context, config.seed)


def train_one(
    case: QualityCase, corpus: Corpus, name: str, seed: int, rate: float, steps: int
) -> dict[str, Any]:
    """One run as plain JSON values: ``loss`` (None and ``error`` where it ended early), ``curve`` of (tokens,
    validation loss), ``order`` of its batches.
    """
    config = case.config(name, seed, rate, steps)
    with start(config.parallel, config.device, config.batch) as engine:
        found: dict[str, Any] = {
            "variant": name,
            "seed": seed,
            "rate": rate,
            "steps": steps,
            "loss": None,
            "error": None,
        }
        try:
            with without_warnings():
                run = Run(config, corpus, engine)
                run.batches = batches_of(run, config)
                result = run.go(None, steps, None)
        except (DivergedError, HeadroomError, StateOverflowError) as error:
            return {
                **found,
                "error": f"{type(error).__name__}: {error}",
                "curve": [],
                "order": None,
                "exact": None,
                "max_error": None,
            }
    if result.interrupted:
        raise KeyboardInterrupt
    tokens = config.batch * config.context
    curve = [[step * tokens, loss] for step, loss in result.val_losses]
    return {
        **found,
        "loss": curve[-1][1],
        "curve": curve,
        "order": run.batches.order,
        "exact": result.exact,
        "max_error": result.max_error,
    }


def best_rate(tried: list[dict[str, Any]]) -> float:
    """The rate with the least validation loss of those that ended.

    Raises:
        RevstepError: none did.
    """
    ended = [run for run in tried if run["loss"] is not None and math.isfinite(run["loss"])]
    if not ended:
        raise RevstepError(
            f"{tried[0]['variant']} came to an end at no rate of {[run['rate'] for run in tried]}"
            f" ({tried[0]['error']}): try lower ones with --rates"
        )
    return min(ended, key=lambda run: run["loss"])["rate"]


def same_order(runs: list[dict[str, Any]]) -> None:
    """Raises RevstepError where two whole runs of one seed and length had other batches, or the same ones in
    another order.
    """
    seen: dict[tuple[int, int], dict[str, Any]] = {}
    for run in runs:
        if run["order"] is None:
            continue
        first = seen.setdefault((run["seed"], run["steps"]), run)
        if first["order"] != run["order"]:
            raise RevstepError(
                f"seed {run['seed']}: {run['variant']} was trained on other batches than {first['variant']},"
                " or in another order: their losses cannot be compared"
            )
