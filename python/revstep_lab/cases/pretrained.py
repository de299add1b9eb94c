"""``revstep bench pretrained``: a real pretrained model fine-tuned plain, checkpointed and reversibly over
seeds, and deployed as the plain model.
"""

from __future__ import annotations

from typing import Any

from revstep._cli.commands.finetune import LEARNING_RATE
from revstep.errors import ConfigError

# ------------------------------------------------------------------------------------------------------------
# The pretrained model that cases of the benchmark fine-tune.


def load_pretrained(name: str) -> tuple[Any, Any]:
    """(model, tokenizer), plain, of what ``name`` means to ``revstep finetune``; empty: SmolLM2-135M.

    Raises:
        ConfigError: the weights cannot be had.
    """
    if not name:
        from ..demo.real.settings import find_weights

        found, why = find_weights()
        if found is None:
            raise ConfigError(f"SmolLM2-135M cannot be had: {why}; pass --model with one of your own")
        name = str(found)
    from revstep.hf._sources import load

    return load(name, plain=True)


# ------------------------------------------------------------------------------------------------------------
# The case as ``revstep bench`` takes it: its name, its options, its tables and its goals.

NAME = "pretrained"
HELP = (
    "a real pretrained model fine-tuned plain, with checkpointing and reversibly, by LoRA or in full, over"
    " seeds: losses as trained and deployed, time, memory"
)
EXAMPLES = """
revstep bench pretrained --resume runs.json --json pretrained.json
revstep bench pretrained --adapting full --resume runs_full.json --json pretrained_full.json
revstep bench pretrained --adapting full --parts costs --optimizer fused-step --json costs.json
"""
ROUNDS = 3
#: Option -> (settings for argparse, help); the defaults are PretrainedCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "model": (
        {},
        "a folder, a GGUF file or a name on the hub (default: SmolLM2-135M from the package index)",
    ),
    "adapting": (
        {"choices": ("LoRA", "full")},
        "adapters on all linear layers, or all weights (default LoRA)",
    ),
    "parts": ({"nargs": "+", "metavar": "PART"}, "losses, costs (default both)"),
    "methods": (
        {"nargs": "+", "metavar": "METHOD"},
        "some of the methods, plain among them (default all that every model can)",
    ),
    "seeds": ({"type": int, "nargs": "+"}, "of the adapters and of the rows' order (default 0 1 2)"),
    "tune-steps": ({"type": int}, "of a fine-tuning (default 200)"),
    "bits": ({"type": float}, "mean carry bits of a layer where c goes by layer (default 4)"),
    "optimizer": (
        {"choices": ("left-out", "fused-step")},
        "of the timed step: left out, or AdamW inside backward (default left-out)",
    ),
    "resume": (
        {"metavar": "FILE"},
        "finished runs are kept here and not done again; the models they begin from in FILE.models",
    ),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..demo.pretrained.bases import PretrainedCase
    from ..demo.pretrained.trials import run_pretrained

    resume = options.pop("resume", "")
    if "tune_steps" in options:
        options["steps"] = options.pop("tune_steps")
    options["lr"] = LEARNING_RATE["full" if options.get("adapting") == "full" else "lora"]
    case = PretrainedCase(
        **{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()}
    )
    result = run_pretrained(
        case, load_pretrained, resume, settings.rounds, lambda line: print(line, flush=True)
    )
    settings.show(result)
    return result


def tables(result: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    case, costs, found = result["case"], {row["name"]: row for row in result["costs"]}, []
    about = f"{case['model']}, {result['class']}, {result['parameters']:,} parameters, {_adapting(case)}"
    if result["losses"]:
        title = (
            f"{about}, {case['steps']} steps of {case['batch']} x {case['context']} tokens of"
            f" {result['text']}, learning rate {case['lr']:g}, seeds {', '.join(map(str, case['seeds']))}"
        )
        header = (
            "method",
            "before",
            "as trained (sd)",
            "deployed (sd)",
            "as trained / plain",
            "deployed / plain",
            "states bit-equal",
        )
        found.append((title, header, [_losses(row) for row in result["losses"]]))
    if costs:
        title = (
            f"{about}: forward and backward pass of {case['timed_batch']} x {case['timed_context']} tokens"
            f"{', AdamW inside backward' * (case.get('optimizer') == 'fused-step')}"
        )
        header = (
            "method",
            "s a step",
            "p20 to p80",
            "/ plain",
            "/ checkpointing",
            "peak, MB",
            "/ plain's",
            "/ checkpointing's",
        )
        found.append((title, header, [_cost(name, costs) for name in costs]))
    return found


def _adapting(case: dict) -> str:
    return f"LoRA of rank {case['rank']}" if case["adapting"] == "LoRA" else "all weights"


def _losses(row: dict) -> tuple[str, ...]:
    states = f"{row['states_bit_equal']:,} of {row['states_rebuilt']:,}" if row["states_rebuilt"] else "-"
    if "deployed" not in row:
        same = (
            "the same"
            if row["training_losses_apart"] == 0.0
            else f"off by up to {row['training_losses_apart']:.2g}"
        )
        return (
            row["name"],
            f"{row['before']:.4f}",
            f"first {row['first_steps']} training losses: {same} as plain's",
            "-",
            "-",
            "-",
            states,
        )
    losses = [_with_sd(row[what], "{:.4f}") for what in ("as_trained", "deployed")]
    to_plain = [_with_sd(row["to_plain"][what], "{:+.2%}", 1.0) for what in ("as_trained", "deployed")]
    return (row["name"], f"{row['before']:.4f}", *losses, *to_plain, states)


def _with_sd(spread: dict, form: str, less: float = 0.0) -> str:
    sd = "" if spread["sd"] is None else f" ({form.replace('+', '').format(spread['sd'])})"
    return form.format(round(spread["mean"] - less, 4) + 0.0) + sd  # no minus before a zero


def _cost(name: str, costs: dict[str, dict]) -> tuple[str, ...]:
    own, others = costs[name], ("plain", "checkpointing")
    ratios = [f"{own['ratios'][n]:.3f}" if n in own["ratios"] else "-" for n in others]
    beside = [f"{own['peak'] / costs[n]['peak']:.3f}" if n in costs and n != name else "-" for n in others]
    return (
        name,
        f"{own['p50']:.2f}",
        f"{own['p20']:.2f} to {own['p80']:.2f}",
        *ratios,
        f"{own['peak'] / 1e6:,.0f}",
        *beside,
    )


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])
