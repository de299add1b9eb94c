"""``revstep bench quality``: losses of one language model trained as every variant, beside the time of a step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

NAME = "quality"
HELP = "a language model trained plain and with every scheme and state, each at its own best rate: losses over seeds beside the time of a step"
EXAMPLES = """
revstep bench quality --resume runs.json --json quality.json
revstep bench quality --resume runs.json --only blend
"""
ROUNDS = 7
#: What ``draw`` draws the losses against: a figure NAME-AXIS.png each.
CURVES = ("tokens", "seconds")
#: Option -> (settings for argparse, help); the defaults are QualityCase's for the device.
OPTIONS: dict[str, tuple[dict, str]] = {
    "variants": ({"nargs": "+", "metavar": "VARIANT"}, "some of the variants, plain among them (default all)"),
    "only": ({"metavar": "VARIANT"}, "train this one alone; needs --resume, where the others' runs are or will be"),
    "resume": ({"metavar": "FILE"}, "finished runs are kept here, and not done again"),
    "seeds": ({"type": int, "nargs": "+"}, "evaluated (default 0 1 2)"),
    "rates": ({"type": float, "nargs": "+"}, "learning rates that are tried (default 0.004 0.008 0.016, on cuda 0.0005 0.001 0.002)"),
    "train-steps": ({"type": int}, "of an evaluated run (default 200, on cuda 3052)"),
    "tune-steps": ({"type": int}, "of a run that tries a rate (default 200, on cuda 3052)"),
    "device": ({}, "cpu or cuda (default cpu)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from revstep.errors import ConfigError

    from ..bench import QualityCase, run_quality

    only, resume = options.pop("only", ""), options.pop("resume", "")
    if only and not resume:
        raise ConfigError("--only was given without --resume: name the file that keeps the runs, or leave --only out")
    if "train_steps" in options:
        options["steps"] = options.pop("train_steps")
    case = QualityCase.default(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
    result = run_quality(case, settings.rounds, resume, only, lambda line: print(line, flush=True))
    settings.show(result)
    return result


def tables(result: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    case = result["case"]
    tokens = case["steps"] * case["batch"] * case["context"]
    rows = []
    for m in result["measurements"]:
        losses = ", ".join("-" if loss is None else f"{loss:.3f}" for loss in m["losses"])
        apart = "-" if m["difference"] is None or m["name"] == "plain" else f"{m['difference']:+.3f} +- {m['standard_error']:.3f}"
        mean = "-" if m["loss"] is None else f"{m['loss']:.3f} ({m['sd']:.3f})"
        rate = f"{m['rate']:g}{' (edge)' if m['edge'] else ''}"
        states = {None: "-", True: "exact", False: f"not exact, off by up to {m['max_error'] or math.nan:.2g}"}[m["exact"]]
        rows.append((m["name"], rate, mean, losses, apart, states, f"{m['p50'] * 1e3:.1f}", f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}",
                     f"{m['ratios'].get('plain', 1.0):.2f}"))  # fmt: skip
    tuned = [(m["name"], *("-" if loss is None else f"{loss:.3f}" for loss in m["tuning"].values())) for m in result["measurements"]]
    title = f"GPT of {result['parameters']:,} parameters ({case['layers']} layers, width {case['width']}), {tokens:,} tokens a run"
    tried = f"Validation loss of each rate after {case['tune_steps']} steps, seed {case['tune_seed']}"
    header = ("variant", "rate", "loss, mean (sd)", "each seed", "minus plain +- se", "states", "ms a step", "p20 to p80", "/ plain")
    return [(title, header, rows), (tried, ("variant", *(f"{rate:g}" for rate in case["rates"])), tuned)]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..goals import rows

    return rows(result["goals"])


def draw(path: Path, result: dict) -> list[Path]:
    """The curves of the result at ``path``, beside it; returns the files."""
    from ..bench.quality_plots import draw_curves

    return draw_curves(path, result)
