"""``revstep bench finetune``: a trained transformers model fine-tuned on another text, ordinary and
reversible, deployed as the ordinary model.
"""

from __future__ import annotations

from typing import Any

NAME = "finetune"
HELP = (
    "a trained Llama or GPT-2 fine-tuned on another text, ordinary, checkpointed and reversible, in full and"
    " with LoRA: losses, time and memory"
)
EXAMPLES = """
revstep bench finetune --json finetune.json
revstep bench finetune --device cuda --json finetune_cuda.json
"""
ROUNDS = 5
#: Option -> (settings for argparse, help); the defaults are FinetuneCase's for the device.
OPTIONS: dict[str, tuple[dict, str]] = {
    "family": ({}, "llama or gpt2 (default llama)"),
    "methods": (
        {"nargs": "+", "metavar": "METHOD"},
        "some of the methods, ordinary among them (default all)",
    ),
    "seeds": ({"type": int, "nargs": "+"}, "of the rows' order and of the adapters (default 0 1 2)"),
    "train-steps": ({"type": int}, "of the first training (default 700, on cuda 4000)"),
    "tune-steps": ({"type": int}, "of a fine-tuning (default 40, on cuda 200)"),
    "text": ({"type": int}, "characters of the first text (default 2000000, on cuda 12000000)"),
    "device": ({}, "cpu or cuda (default cpu)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..demo.finetune.trials import FinetuneCase, run_finetune

    if "train_steps" in options:
        options["steps"] = options.pop("train_steps")
    case = FinetuneCase.default(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    )
    result = run_finetune(case, settings.rounds, settings.memory, lambda line: print(line, flush=True))
    settings.show(result)
    return result


def tables(result: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    from revstep._values import size

    case, before = result["case"], result["before"]
    quality, cost = [], []
    for m in result["measurements"]:
        apart = (
            "-"
            if m["name"].startswith("ordinary")
            else f"{m['difference']['mean']:+.4f} +- {m['difference']['standard_error']:.4f}"
        )
        losses = [
            f"{m[what]['mean']:.4f} ({m[what]['sd']:.4f})" for what in ("as_trained", "deployed", "old")
        ]
        states = f"{m['states_bit_equal']:,} of {m['states_rebuilt']:,}" if m["states_rebuilt"] else "-"
        quality.append((m["name"], f"{m['converted']:.4f}", losses[0], losses[1], apart, losses[2], states))
        memory = (
            ["-" if m["memory"][k] is None else size(m["memory"][k]) for k in ("kept", "peak", "process")]
            if "memory" in m
            else []
        )
        cost.append(
            (
                m["name"],
                f"{m['p50'] * 1e3:.1f}",
                f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}",
                f"{next(iter(m['ratios'].values()), 1.0):.2f}",
                *memory,
            )
        )
    title = (
        f"{result['class']}, {result['parameters']:,} parameters, {case['layers']} layers, fine-tuned for"
        f" {case['tune_steps']} steps, {len(case['seeds'])} seeds; before: {before['new']:.4f} on the new"
        f" text, {before['old']:.4f} on the old"
    )
    header = (
        "method",
        "converted",
        "as trained (sd)",
        "deployed (sd)",
        "minus ordinary +- se",
        "old text (sd)",
        "states bit-equal",
    )
    memory = ("kept", "peak", "process") if all("memory" in m for m in result["measurements"]) else ()
    return [
        (title, header, quality),
        (
            f"A step, {case['batch']} x {case['context']}",
            ("method", "ms", "p20 to p80", "/ ordinary", *memory),
            cost,
        ),
    ]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])
