"""``revstep bench pretrained``: a real pretrained model fine-tuned plain, checkpointed and reversibly over seeds, deployed as the plain model."""

from __future__ import annotations

from typing import Any

from ._bench_dial import _load
from .finetune import LEARNING_RATE

NAME = "pretrained"
HELP = "a real pretrained model fine-tuned plain, with checkpointing and reversibly, by LoRA or in full, over seeds: losses as trained and deployed, time, memory"
EXAMPLES = """
revstep bench pretrained --resume runs.json --json pretrained.json
revstep bench pretrained --adapting full --resume runs_full.json --json pretrained_full.json
"""
ROUNDS = 3
#: Option -> (settings for argparse, help); the defaults are PretrainedCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "model": ({}, "a folder, a GGUF file or a name on the hub (default: SmolLM2-135M from the package index)"),
    "adapting": ({"choices": ("LoRA", "full")}, "adapters on all linear layers, or all weights (default LoRA)"),
    "methods": ({"nargs": "+", "metavar": "METHOD"}, "some of the methods, plain among them (default all)"),
    "seeds": ({"type": int, "nargs": "+"}, "of the adapters and of the rows' order (default 0 1 2)"),
    "tune-steps": ({"type": int}, "of a fine-tuning (default 200)"),
    "bits": ({"type": float}, "mean carry bits of a layer where c goes by layer (default 4)"),
    "resume": ({"metavar": "FILE"}, "finished runs are kept here and not done again; the models they begin from in FILE.models"),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ...demo.pretrained.case import PretrainedCase
    from ...demo.pretrained.trials import run_pretrained

    resume = options.pop("resume", "")
    if "tune_steps" in options:
        options["steps"] = options.pop("tune_steps")
    options["lr"] = LEARNING_RATE["full" if options.get("adapting") == "full" else "lora"]
    case = PretrainedCase(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
    result = run_pretrained(case, _load, resume, settings.rounds, settings.memory, lambda line: print(line, flush=True))
    settings.show(result)
    return result


def tables(result: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    case, rows = result["case"], result["measurements"]
    title = (
        f"{case['model']}, {result['class']}, {result['parameters']:,} parameters, {'LoRA of rank ' + str(case['rank']) if case['adapting'] == 'LoRA' else 'all weights'}, "
        f"{case['steps']} steps of {case['batch']} x {case['context']} tokens of {result['text']}, learning rate {case['lr']:g}, seeds {', '.join(map(str, case['seeds']))}"
    )
    header = ("method", "before", "as trained (sd)", "deployed (sd)", "as trained / plain", "deployed / plain", "states bit-equal")
    found = [(title, header, [_losses(row) for row in rows])]
    if all("cost" in row for row in rows):
        header = ("method", "s a step", "p20 to p80", "/ plain", "/ checkpointing", "peak, MB", "/ plain's", "/ checkpointing's")
        peaks = {row["name"]: row["cost"]["peak"] for row in rows}
        about = f"Forward and backward pass of {case['timed_batch']} x {case['timed_context']} tokens, {case['threads']} thread{'s' * (case['threads'] > 1)}"
        found.append((about, header, [_cost(row, peaks) for row in rows]))
    return found


def _losses(row: dict) -> tuple[str, ...]:
    states = f"{row['states_bit_equal']:,} of {row['states_rebuilt']:,}" if row["states_rebuilt"] else "-"
    if "deployed" not in row:
        same = "the same" if row["training_losses_apart"] == 0.0 else f"off by up to {row['training_losses_apart']:.2g}"
        return (row["name"], f"{row['before']:.4f}", f"first {row['first_steps']} training losses: {same} as plain's", "-", "-", "-", states)
    losses = [_with_sd(row[what], "{:.4f}") for what in ("as_trained", "deployed")]
    to_plain = [_with_sd({k: None if v is None else v - (k == "mean") for k, v in row["to_plain"][what].items() if k != "each"}, "{:+.2%}") for what in ("as_trained", "deployed")]
    return (row["name"], f"{row['before']:.4f}", *losses, *to_plain, states)


def _with_sd(spread: dict, form: str) -> str:
    sd = "" if spread["sd"] is None else f" ({form.replace('+', '').format(spread['sd'])})"
    return form.format(spread["mean"]) + sd


def _cost(row: dict, peaks: dict[str, int]) -> tuple[str, ...]:
    cost = row["cost"]
    ratios = [f"{cost['ratios'][name]:.3f}" if name in cost["ratios"] else "-" for name in ("plain", "checkpointing")]
    beside = [f"{cost['peak'] / peaks[name]:.3f}" if name in peaks and name != row["name"] else "-" for name in ("plain", "checkpointing")]
    return (row["name"], f"{cost['p50']:.2f}", f"{cost['p20']:.2f} to {cost['p80']:.2f}", *ratios, f"{cost['peak'] / 1e6:,.0f}", *beside)


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from .. import output

    return output.verdicts(result["goals"])
