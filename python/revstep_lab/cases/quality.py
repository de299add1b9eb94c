"""Quality beside cost: one language model trained as every variant, each at its own best learning rate;
losses by seed, and the time of a step.

Every run of a seed has the same initial weights and the same batches in the same order, which is checked. A
rate is chosen by validation loss on a seed that is not evaluated. Seconds are those of a step measured in
interleaved rounds, times the steps: a run's own clock would show what else the machine did.
"""

from __future__ import annotations

import math
import statistics
import tempfile
import time
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
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
from revstep.lm._parallel import autocast, start
from revstep.lm._run import Run, clip_gradients
from revstep.lm._session import DivergedError

from ..bench.quality_runs import Runs
from ..bench.runner import environment, measure


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


def summary(case: QualityCase, name: str, runs: Runs) -> dict[str, Any]:
    """Loss of a variant: mean and standard deviation over seeds, each, and the paired difference to plain
    with its standard error.
    """
    tried = runs.of(name, [case.tune_seed], case.tune_steps)
    rate = best_rate(tried)
    own, plain = ([run for run in runs.of(other, case.seeds, case.steps)] for other in (name, "plain"))
    losses = [run["loss"] for run in own]
    row = {
        "rate": rate,
        "edge": rate in (min(case.rates), max(case.rates)),
        "tuning": {str(r["rate"]): r["loss"] for r in tried},
        "losses": losses,
    }
    row |= {
        "exact": None if any(r["exact"] is None for r in own) else all(r["exact"] for r in own),
        "errors": [r["error"] for r in own if r["error"]],
    }
    row["max_error"] = max((r["max_error"] for r in own if r["max_error"] is not None), default=None)
    if None in losses:
        return {**row, "loss": None, "sd": None, "difference": None, "standard_error": None}
    row |= {
        "loss": statistics.mean(losses),
        "sd": statistics.stdev(losses),
        "difference": None,
        "standard_error": None,
    }
    if len(plain) != len(own) or any(run["loss"] is None for run in plain):
        return row
    apart = [a["loss"] - b["loss"] for a, b in zip(own, plain, strict=True)]
    return {
        **row,
        "difference": statistics.mean(apart),
        "standard_error": statistics.stdev(apart) / math.sqrt(len(apart)),
    }


def times(case: QualityCase, names: Sequence[str], corpus: Corpus, rounds: int) -> dict[str, dict]:
    """Seconds of a whole training step of each variant, in interleaved rounds; thread time on the CPU."""
    with start("none", case.device, case.batch) as engine, without_warnings():
        made = {}
        for name in names:
            config = case.config(name, case.tune_seed, min(case.rates), case.steps)
            made[name] = _step(Run(config, corpus, engine), config)
        cuda = case.device.startswith("cuda")
        clock = time.process_time if not cuda and torch.get_num_threads() == 1 else time.perf_counter
        found = measure(made, rounds, sync=torch.cuda.synchronize if cuda else lambda: None, clock=clock)
    return {
        m.name: {**m.to_dict(), "ratios": {o: r for o, r in m.ratios.items() if o == "plain"}} for m in found
    }


def _step(run: Run, config: TrainConfig) -> Callable[[], None]:
    def step() -> None:
        x, y = run.batches.next()
        with autocast(run.device, run.dtype):
            loss = run.model(x.to(run.device), y.to(run.device))
        loss.backward()
        clip_gradients(run.model, config.clip)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)

    return step


def run_quality(
    case: QualityCase,
    rounds: int,
    resume: str = "",
    only: str = "",
    say: Callable[[str], None] = lambda line: None,
) -> dict:
    """Train everything that ``resume``, a file, does not hold yet, each run kept there when it is done.

    Args:
        only: train this variant alone, into ``resume``, and leave the rest to another call; the result then
            has it and plain, if that is there.

    Raises:
        ConfigError: ``resume`` holds runs of another case; ``only`` is none of its variants. RevstepError:
            batches differ, a state was not rebuilt, or no rate works.
    """
    runs = Runs(
        Path(resume) if resume else None,
        {k: v for k, v in asdict(case).items() if k not in ("variants", "seeds")},
    )
    names = tuple(n for n in case.variants if not only or n == only)
    if not names:
        raise ConfigError(f"only is {only!r}, expected one of the variants {'; '.join(case.variants)}")
    with texts(case) as corpus:
        for name in names:
            for rate in case.rates:
                runs.get(
                    name, case.tune_seed, rate, case.tune_steps, lambda *key: train_one(case, corpus, *key)
                )
            rate = best_rate(runs.of(name, [case.tune_seed], case.tune_steps))
            for seed in case.seeds:
                run = runs.get(name, seed, rate, case.steps, lambda *key: train_one(case, corpus, *key))
                say(
                    f"{name}, seed {seed}, rate {rate:g}:"
                    f" {run['loss'] if run['loss'] is not None else run['error']}"
                )
            same_order(runs.all())
        shown = [
            n
            for n in case.variants
            if n in names or (n == "plain" and runs.of("plain", case.seeds, case.steps))
        ]
        measured = times(case, shown, corpus, rounds)
    rows = [
        {
            **measured[name],
            **summary(case, name, runs),
            "curves": _curves(runs.of(name, case.seeds, case.steps)),
        }
        for name in shown
    ]
    parameters = sum(p.numel() for p in _parameters(case))
    return {
        "environment": environment(case.device),
        "case": {**asdict(case), "variants": shown},
        "parameters": parameters,
        "measurements": rows,
        "goals": [],
        "skipped": [],
    }


def _curves(runs: list[dict[str, Any]]) -> list[list[list[float]]]:
    return [run["curve"] for run in runs]


def _parameters(case: QualityCase) -> Iterator[torch.nn.Parameter]:
    from revstep.lm._architectures import make_model

    return make_model(case.config("plain", 0, 1e-3, 1).shape(257), "plain").parameters()


# ------------------------------------------------------------------------------------------------------------
# ``revstep bench quality``: losses of one language model trained as every variant, beside the time of a step.

NAME = "quality"
HELP = (
    "a language model trained plain and with every scheme and state, each at its own best rate: losses over"
    " seeds beside the time of a step"
)
EXAMPLES = """
revstep bench quality --resume runs.json --json quality.json
revstep bench quality --resume runs.json --only blend
"""
ROUNDS = 7
#: What ``draw`` draws the losses against: a figure NAME-AXIS.png each.
CURVES = ("tokens", "seconds")
#: Option -> (settings for argparse, help); the defaults are QualityCase's for the device.
OPTIONS: dict[str, tuple[dict, str]] = {
    "variants": (
        {"nargs": "+", "metavar": "VARIANT"},
        "some of the variants, plain among them (default all)",
    ),
    "only": (
        {"metavar": "VARIANT"},
        "train this one alone; needs --resume, where the others' runs are or will be",
    ),
    "resume": ({"metavar": "FILE"}, "finished runs are kept here, and not done again"),
    "seeds": ({"type": int, "nargs": "+"}, "evaluated (default 0 1 2)"),
    "rates": (
        {"type": float, "nargs": "+"},
        "learning rates that are tried (default 0.004 0.008 0.016, on cuda 0.0005 0.001 0.002)",
    ),
    "train-steps": ({"type": int}, "of an evaluated run (default 200, on cuda 3052)"),
    "tune-steps": ({"type": int}, "of a run that tries a rate (default 200, on cuda 3052)"),
    "device": ({}, "cpu or cuda (default cpu)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from revstep.errors import ConfigError

    only, resume = options.pop("only", ""), options.pop("resume", "")
    if only and not resume:
        raise ConfigError(
            "--only was given without --resume: name the file that keeps the runs, or leave --only out"
        )
    if "train_steps" in options:
        options["steps"] = options.pop("train_steps")
    case = QualityCase.default(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    )
    result = run_quality(case, settings.rounds, resume, only, lambda line: print(line, flush=True))
    settings.show(result)
    return result


def tables(result: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    case = result["case"]
    tokens = case["steps"] * case["batch"] * case["context"]
    rows = []
    for m in result["measurements"]:
        losses = ", ".join("-" if loss is None else f"{loss:.3f}" for loss in m["losses"])
        apart = (
            "-"
            if m["difference"] is None or m["name"] == "plain"
            else f"{m['difference']:+.3f} +- {m['standard_error']:.3f}"
        )
        mean = "-" if m["loss"] is None else f"{m['loss']:.3f} ({m['sd']:.3f})"
        rate = f"{m['rate']:g}{' (edge)' if m['edge'] else ''}"
        states = {
            None: "-",
            True: "exact",
            False: f"not exact, off by up to {m['max_error'] or math.nan:.2g}",
        }[m["exact"]]
        rows.append(
            (
                m["name"],
                rate,
                mean,
                losses,
                apart,
                states,
                f"{m['p50'] * 1e3:.1f}",
                f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}",
                f"{m['ratios'].get('plain', 1.0):.2f}",
            )
        )
    tuned = [
        (m["name"], *("-" if loss is None else f"{loss:.3f}" for loss in m["tuning"].values()))
        for m in result["measurements"]
    ]
    title = (
        f"GPT of {result['parameters']:,} parameters ({case['layers']} layers, width {case['width']}),"
        f" {tokens:,} tokens a run"
    )
    tried = f"Validation loss of each rate after {case['tune_steps']} steps, seed {case['tune_seed']}"
    header = (
        "variant",
        "rate",
        "loss, mean (sd)",
        "each seed",
        "minus plain +- se",
        "states",
        "ms a step",
        "p20 to p80",
        "/ plain",
    )
    return [(title, header, rows), (tried, ("variant", *(f"{rate:g}" for rate in case["rates"])), tuned)]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])


def draw(path: Path, result: dict) -> list[Path]:
    """The curves of the result at ``path``, beside it; returns the files."""
    from ..bench.quality_runs import draw_curves

    return draw_curves(path, result)
