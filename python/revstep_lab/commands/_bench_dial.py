"""``revstep bench dial``: a real pretrained model run reversibly, without training: what every choice of c costs it."""

from __future__ import annotations

from typing import Any

from ._pretrained import load_pretrained

NAME = "dial"
HELP = "a real pretrained model run reversibly without training: loss and divergence by carry bits, one c or c by layer"
EXAMPLES = """
revstep bench dial --json dial.json
revstep bench dial --model my-model --tokens 4096 --json dial_mine.json
"""
ROUNDS = 1
#: Option -> (settings for argparse, help).
OPTIONS: dict[str, tuple[dict, str]] = {
    "model": (
        {},
        "a folder, a GGUF file or a name on the hub (default: SmolLM2-135M from the package index)",
    ),
    "tokens": ({"type": int}, "of each of the two texts (default 2048)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..bench.dial import DialCase, run_dial
    from ..demo.finetune.text import documentation

    result = run_dial(DialCase(**options), load_pretrained, documentation(), lambda line: print(line, flush=True))
    settings.show(result)
    return result


def tables(result: dict) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    about = result["model"]
    title = (
        f"{about['class']}, {about['parameters']:,} parameters, {about['layers']} layers, run reversibly without training; "
        f"loss {about['losses'][0]:.3f} on the text c was chosen on, {about['losses'][1]:.3f} on another"
    )
    header = ("run as", "bits a layer", "KL, nats a token", "loss", "KL, other text", "loss, other text")
    found = [(title, header, [_line(row["name"], row) for row in result["rows"]])]
    if result["without"]:
        rows = [_line(f"{row['asked']:g} bits, {row['part']}", row) for row in result["without"]]
        found.append(("What each part of a choice by layer is worth, from one measurement, uncorrected", header, rows))
    return found


def _line(name: str, row: dict) -> tuple[str, ...]:
    figures = [f"{row[which]['divergence']:.2g}" if k == 0 else f"{row[which]['change']:+.2%}" for which in ("text", "other") for k in (0, 1)]
    return (name, f"{row['bits']:.2f}", *figures)


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..goals import rows

    return rows(result["goals"])
