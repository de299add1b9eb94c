"""The tables of docs/hf.md, from docs/benchmarks/hf.json, which ``revstep demo --hf`` wrote as hf.json.
docs/generate.py writes them into the page.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from revstep_lab.demo.finetune import record

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
from methods import device_line  # noqa: E402

FILE, PAGE = ROOT / "docs" / "benchmarks" / "hf.json", ROOT / "docs" / "hf.md"
MARK = re.compile(r"(<!-- hf: (\w+), from docs/hf_tables\.py -->\n).*?(<!-- /hf -->)", re.S)


def _each(document: dict[str, Any], table: Any) -> str:
    return "\n\n".join(
        f"**{record.NAMES[name]}** ({family['parameters'] / 1e6:.2f} M parameters).\n\n{table(family)}"
        for name, family in document["families"].items()
    )


def _setup(document: dict[str, Any]) -> str:
    s = document["settings"]
    return (
        f"{device_line(document['environment'], document['command'])} ([all numbers](benchmarks/hf.json));"
        f" {s['layers']} layers, width {s['width']}, {s['vocab']} ids, {s['batch']} x {s['context']} tokens a"
        f" step, {s['steps']} steps of training, {s['tune_steps']} of fine-tuning, seed"
        f" {s['seed']}.\n\n{document['summary']}"
    )


def _samples(document: dict[str, Any]) -> str:
    return "\n\n".join(
        f"{record.NAMES[name]}:\n\n    {json.dumps(f['sample']['text'])}"
        for name, f in document["families"].items()
    )


TABLES = {
    "setup": _setup,
    "dial": lambda d: _each(d, record.dial_table),
    "tuned": lambda d: _each(d, record.tuned_table),
    "goals": lambda d: record.goals_table(d["goals"]),
    "samples": _samples,
}


def renewed(page: str, document: dict[str, Any]) -> str:
    """The page with its tables written again. Raises ValueError at a mark that is not closed or unknown."""
    if page.count("<!-- hf:") != len(MARK.findall(page)):
        raise ValueError("a mark '<!-- hf: NAME, from docs/hf_tables.py -->' needs its '<!-- /hf -->'")
    unknown = [m[1] for m in MARK.findall(page) if m[1] not in TABLES]
    if unknown:
        raise ValueError(f"no table {unknown[0]!r}, expected one of {', '.join(TABLES)}")
    return MARK.sub(lambda m: f"{m[1]}\n{TABLES[m[2]](document)}\n\n{m[3]}", page)


def pages() -> dict[Path, str]:
    """Path -> text as it should be."""
    return {PAGE: renewed(PAGE.read_text(encoding="utf-8"), json.loads(FILE.read_text(encoding="utf-8")))}
