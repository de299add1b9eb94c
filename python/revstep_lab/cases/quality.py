"""``revstep bench quality``: quality beside cost: one language model trained as every variant, each at its
own best learning rate; losses by seed, and the time of a step.

Every run of a seed has the same initial weights and the same batches in the same order, which is checked. A
rate is chosen by validation loss on a seed that is not evaluated. Seconds are those of a step measured in
interleaved rounds, times the steps: a run's own clock would show what else the machine did.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from revstep.errors import ConfigError
from revstep.lm._config import TrainConfig
from revstep.lm._data import Corpus
from revstep.lm._parallel import autocast, start
from revstep.lm._run import Run, clip_gradients

from ..bench.results import Runs
from ..bench.runner import environment, measure
from ._quality import QualityCase, best_rate, same_order, texts, train_one, without_warnings


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
# The case as ``revstep bench`` takes it: its name, its options, its tables and its goals.

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
    from ..bench.results import draw_quality

    return draw_quality(path, result)
