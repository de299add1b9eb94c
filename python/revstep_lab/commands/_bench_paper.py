"""``revstep bench paper``: the tables of the paper, by real training steps."""

from __future__ import annotations

from typing import Any

NAME = "paper"
HELP = "the paper's tables: largest batch and throughput at it, time and memory against depth, length and batch"
EXAMPLES = """
revstep bench paper --json paper.json
revstep bench paper --device cuda --dtype bfloat16 --json paper_cuda.json
revstep bench paper --parts batch --models small --memory-limit 512
"""
ROUNDS = 5
#: Option -> (settings for argparse, help); the defaults are PaperCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "parts": ({"nargs": "+", "metavar": "PART"}, "some of batch, throughput, depth, length, batch-size (default all)"),
    "models": ({"nargs": "+", "metavar": "SIZE"}, "some of small, medium, large for the largest batch (default all)"),
    "memory-limit": ({"type": int}, "MB of a training process (default on cuda the card's, on cpu 256 for the batch and 192 for the throughput)"),
    "most": ({"type": int}, "batches above are not tried (default 4096)"),
    "dtype": ({}, "float32, or bfloat16 for autocast (default float32)"),
    "device": ({}, "cpu or cuda (default cpu)"),
}
Table = tuple[str, tuple[str, ...], list[tuple[str, ...]]]


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..bench import PaperCase, run_paper

    case = PaperCase(**{name: tuple(value) if isinstance(value, list) else value for name, value in options.items()})
    return run_paper(case, settings.rounds, settings.memory, settings.show)


def tables(result: dict) -> list[Table]:
    return [table for name, part in result["parts"].items() for table in _TABLES.get(name, _growth)(part)]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..goals import rows

    return rows([g for part in result["parts"].values() for g in part["goals"]])


def _batch(part: dict) -> list[Table]:
    rows = []
    for row in part["rows"]:
        m = row["model"]
        shape = f"{row['size']}: {m['layers']} layers, width {m['width']}"
        limit = f"{m['limit'] >> 20} MB" if m["limit"] else "the card's"
        rows.append((shape, limit, row["way"], "chunked" if row["chunked"] else "whole logits", str(row["tried"]), str(row["batch"])))
    m = part["rows"][0]["model"]
    title = f"Largest batch, {m['length']:,} tokens, {m['vocab']:,} ids, {m['dtype']}: of two steps, and confirmed by {part['run']} steps of varying length"
    return [(title, ("model", "memory", "step", "loss", "two steps", "confirmed"), rows)]


def _throughput(part: dict) -> list[Table]:
    rows = [
        (str(m["layers"]), m["name"], str(m["batch"]), f"{m['samples_per_second']:.1f}", f"{1 / m['p80']:.1f} to {1 / m['p20']:.1f}",
         f"{1 / m['ratios']['standard']:.2f}" if "standard" in m["ratios"] else "1.00", f"{1 / m['ratios']['checkpoint']:.2f}" if "checkpoint" in m["ratios"] else "1.00")
        for m in part["rows"]
    ]  # fmt: skip
    title = f"Throughput at the largest batch, {part['length']:,} tokens, chunked loss"
    return [(title, ("layers", "step", "batch", "samples/s", "p20 to p80", "/ standard", "/ checkpoint"), rows)]


def _growth(part: dict) -> list[Table]:
    from revstep.sizes import size

    memory = all("memory" in m for m in part["rows"])
    rows = []
    for m in part["rows"]:
        cells = [f"{m['x']:,}", m["way"], f"{m['p50'] * 1e3:.1f}", f"{m['p20'] * 1e3:.1f} to {m['p80'] * 1e3:.1f}", f"{m['ratios'].get('plain', 1.0):.2f}"]
        rows.append((*cells, *("-" if m["memory"][k] is None else size(m["memory"][k]) for k in ("kept", "peak", "process") if memory)))
    header = (part["field"], "step", "ms", "p20 to p80", "/ plain", *(("kept", "peak", "process") if memory else ()))
    found: list[Table] = [(f"Against {part['field']}", header, rows)]
    if "layer" in part:
        kept = [(row["what"], f"{row['bytes']:,.0f}", f"{row['tensors']:,.0f}", f"{row['expected']:,.0f}") for row in part["layer"]]
        found.append(("Bytes that one layer more keeps for backward", ("stack", "reported", "of them made by operators", "expected"), kept))
    return found


_TABLES = {"batch": _batch, "throughput": _throughput}
