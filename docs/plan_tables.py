"""The tables of docs/plan.md: predictions beside real steps, beside published figures, and worked rows.

Usage: python docs/plan_tables.py               (measures, a few minutes; writes docs/benchmarks/plan.json and
the tables)
       python docs/plan_tables.py PART ...      (measures these parts again: accuracy, published, alone,
       worked)
docs/generate.py writes the tables again from plan.json.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs"), str(ROOT / "tests" / "plan")]
from methods import device_line, table  # noqa: E402

FILE, PAGE = ROOT / "docs" / "benchmarks" / "plan.json", ROOT / "docs" / "plan.md"
MARK = re.compile(r"(<!-- plan: (\w+), from docs/plan_tables\.py -->\n).*?(<!-- /plan -->)", re.S)
COMMAND = "python docs/plan_tables.py"

#: Largest batch, standard and reversible, by depth: width 512, 8 heads (arXiv 2512.02056 v2).
PUBLISHED = {16: (326, 1550), 32: (176, 1374), 64: (88, 1076), 96: (52, 874)}
#: What the record does not say. Chosen: float32, AdamW, all logits, 24 GB. Fitted: tokens a sequence on the
#: standard batch of 16 layers, vocabulary on the reversible batch of 16, and what their implementation keeps
#: a layer, in hidden states, on the reversible batch of 96.
FIT = {"memory": 24e9, "sequence": 64, "vocabulary": 16896, "per_layer": 0.784}
FITTED = {(16, 0), (16, 1), (96, 1)}

WORKED = {"llama3-8b": 8, "llama3-70b": 32, "llama3-405b": 256}
SEQUENCE, MEMORY, RANK = 4096, "80GB", 16


def accuracy() -> list[dict]:
    """Predicted and allocated bytes of the second training step of six small models, three modes each."""
    from plan_step import BATCH, SEQUENCE, configs, measure

    import revstep.hf._loss  # noqa: F401
    from revstep.plan import plan

    rows = []
    for name, config in configs().items():
        made = plan(config, sequence=SEQUENCE, batch=BATCH, dtype="float32")
        for row in made.rows[:3]:
            found = measure(config, row.mode)
            rows.append(
                {
                    "model": name,
                    "mode": row.mode,
                    "predicted": row.peak,
                    "measured": found.peak,
                    "before": found.before,
                    "moment": row.moment,
                }
            )
    return rows


def published(per_layer: float = FIT["per_layer"]) -> list[dict]:
    """Predicted largest batches for the published depths; ``per_layer`` hidden states kept a layer by the
    reversible implementation.
    """
    import torch
    import transformers

    from revstep.plan._modes import Reversible, static
    from revstep.plan._probe import Probe
    from revstep.plan._rows import largest_batch
    from revstep.plan._source import find_source

    rows = []
    for depth, known in PUBLISHED.items():
        config = transformers.GPT2Config(
            n_embd=512,
            n_layer=depth,
            n_head=8,
            vocab_size=FIT["vocabulary"],
            n_positions=1024,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
        probe = Probe(find_source(config), FIT["sequence"], torch.float32, None, "all", 1024)
        fixed, states = static(probe.weights, "adamw", 1, "ddp"), Reversible(4, (0,) * depth)
        for way, mode in enumerate(("plain", "reversible")):
            needed = partial(_needed, probe, fixed, states, mode, per_layer * depth * way)
            fits = largest_batch(needed, FIT["memory"])
            rows.append(
                {
                    "layers": depth,
                    "mode": mode,
                    "published": known[way],
                    "predicted": fits,
                    "fitted": (depth, way) in FITTED,
                }
            )
    return rows


def _needed(probe: Any, fixed: Any, states: Any, mode: str, extra: float, batch: int) -> float:
    """Peak bytes with ``extra`` hidden states on top."""
    from revstep.plan._modes import peak

    sample = probe.near(batch)
    return peak(mode, sample, fixed, states, False, False).peak + extra * sample.hidden


def worked() -> list[dict]:
    """The three public architectures, full and LoRA, on one GPU and on many."""
    from revstep.plan import PUBLIC, plan

    rows = []
    for name, many in WORKED.items():
        for trainable in ("all", f"lora:r={RANK}"):
            for world in (1, many):
                print(name, trainable, world, flush=True)
                made = plan(
                    PUBLIC[name],
                    sequence=SEQUENCE,
                    memory=MEMORY,
                    trainable=trainable,
                    world=world,
                    engine="fsdp",
                )
                rows.append(
                    {
                        "name": PUBLIC[name]["name"],
                        "trainable": trainable,
                        "world": world,
                        "rows": made.to_dict()["rows"],
                        "parameters": made.parameters,
                    }
                )
    return rows


def measure(parts: list[str]) -> None:
    """These parts, with the environment, to plan.json."""
    from revstep_lab.bench.runner import environment

    warnings.simplefilter("ignore")
    data = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    data["environment"] = environment("cpu")
    data |= {part: PARTS[part]() for part in parts}
    FILE.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


PARTS = {"accuracy": accuracy, "published": published, "alone": partial(published, 0.0), "worked": worked}


def _accuracy(data: dict) -> str:
    rows = []
    for r in data["accuracy"]:
        above = (r["predicted"] - r["before"]) / (r["measured"] - r["before"]) - 1
        numbers = [f"{r[key] / 1e6:.2f}" for key in ("before", "predicted", "measured")]
        rows.append(
            [
                r["model"],
                r["mode"],
                *numbers,
                f"{r['predicted'] / r['measured'] - 1:+.1%}",
                f"{above:+.1%}",
                r["moment"],
            ]
        )
    return table(
        [
            "model",
            "mode",
            "before the step, MB",
            "predicted peak, MB",
            "allocated, MB",
            "error",
            "error of what the step adds",
            "at",
        ],
        rows,
    )


def _published(data: dict) -> str:
    rows = []
    for r, alone in zip(data["published"], data["alone"]):
        error = f"{r['predicted'] / r['published'] - 1:+.1%}" + (" (fitted)" if r["fitted"] else "")
        without = (
            ""
            if r["mode"] == "plain"
            else f"{alone['predicted']:,} ({alone['predicted'] / r['published'] - 1:+.0%})"
        )
        rows.append(
            [str(r["layers"]), r["mode"], f"{r['published']:,}", f"{r['predicted']:,}", error, without]
        )
    return table(
        ["layers", "mode", "published", "predicted", "error", "predicted with two states alone"], rows
    )


def _worked(data: dict) -> str:
    from revstep._values import size

    rows = []
    for case in data["worked"]:
        for chunked in (False, True):
            some = [r for r in case["rows"] if r["chunked"] == chunked]
            fits = [
                str(r["largest_batch"]) if r["largest_batch"] else f"0, short of {size(r['short'])}"
                for r in some
            ]
            last = some[-1]
            keep = "-" if last["keep"] is None else f"{last['keep']} ({last['keep_step_time']:.2f}x)"
            trains = "all" if case["trainable"] == "all" else f"LoRA {RANK}"
            rows.append(
                [
                    case["name"],
                    trains,
                    str(case["world"]),
                    "chunked" if chunked else "all",
                    *(size(r["peak"]) for r in some),
                    *fits,
                    f"{last['step_time']:.2f}x",
                    keep,
                ]
            )
    modes = ("plain", "checkpointed", "reversible")
    head = [
        "model",
        "trains",
        "GPUs",
        "logits",
        *(f"peak at batch 1: {m}" for m in modes),
        *(f"largest batch: {m}" for m in modes),
        "step time",
        "keep at batch 1",
    ]
    return table(head, rows)


TABLES = {"accuracy": _accuracy, "published": _published, "worked": _worked}


def renewed(text: str, data: dict) -> str:
    """The page with its tables written again. Raises ValueError at a mark that is not closed or unknown."""
    if text.count("<!-- plan:") != len(MARK.findall(text)):
        raise ValueError("a mark '<!-- plan: NAME, from docs/plan_tables.py -->' needs its '<!-- /plan -->'")
    line = device_line(data["environment"], COMMAND)
    return MARK.sub(
        lambda m: (
            f"{m[1]}\n{line} ([all numbers](benchmarks/{FILE.name})).\n\n{TABLES[m[2]](data)}\n\n{m[3]}"
        ),
        text,
    )


def pages() -> dict[Path, str]:
    """Path -> text as it should be."""
    return {PAGE: renewed(PAGE.read_text(encoding="utf-8"), json.loads(FILE.read_text(encoding="utf-8")))}


def main(arguments: list[str]) -> int:
    unknown = [a for a in arguments if a not in PARTS]
    if unknown:
        print(f"unknown {unknown}: expected some of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    measure(arguments or list(PARTS))
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
