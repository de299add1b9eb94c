"""Measures what becomes of bits flipped in weights, buffers and arguments between forward and backward.

Usage: python docs/flips.py        (writes docs/benchmarks/flips.json; a few minutes on one core)

The flips are those of the tests, so this needs a checkout of the repository. A draw depends on its
seed alone. Another processor may round a product differently, so that other low bits have no effect.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

from revstep._cli.shared import write_json
from revstep_lab.bench.runner import environment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "stack"))

from bitflips import CALLERS, Case, Subject, draws, watching  # noqa: E402

FILE = ROOT / "docs" / "benchmarks" / "flips.json"
COMMAND = "python docs/flips.py"
#: Three blocks of attention and MLP: weights of 128 and 192 KiB, of which the default looks at 4 KiB each.
BASE = Case("blend", width=128, attend=True, mask=True, shape=(1, 2))
CASES = {
    "2 positions, float32": BASE,
    "2 positions, float32, zero gate": dataclasses.replace(BASE, gate=0.0),
    "2 positions, bf16 autocast": dataclasses.replace(BASE, autocast=True),
    "64 positions, float32": dataclasses.replace(BASE, shape=(2, 32)),
    "64 positions, bf16 autocast": dataclasses.replace(BASE, shape=(2, 32), autocast=True),
}
DRAWS = 1000


def measure(name: str, every: bool, count: int = DRAWS) -> dict[str, Any]:
    """Outcomes of the first ``count`` draws of a case. ``every``: with ``checks="all"``."""
    with watching():
        subject = Subject(dataclasses.replace(CASES[name], every=every))
        found = draws(subject, count, CALLERS, moments=("before",))
    silent = [i for i, d in enumerate(found) if d.outcome == "silent"]
    return {
        "case": name, "checks": "all" if every else True, "draws": count,
        **{outcome: sum(d.outcome == outcome for d in found) for outcome in ("reported", "same", "silent")},
        "share": len(silent) / count, "largest": max(d.error for d in found), "silent_at": silent,
        "silent_kinds": {kind: sum(found[i].kind == kind for i in silent) for kind in CALLERS},
    }  # fmt: skip


def main() -> int:
    torch.set_num_threads(1)
    rows = []
    for name in CASES:
        for every in (False, True):
            rows.append(measure(name, every))
            print({k: v for k, v in rows[-1].items() if k != "silent_at"}, flush=True)
    counted = [r for r in rows if r["checks"] is True]
    total = sum(r["draws"] for r in counted)
    share, largest = sum(r["silent"] for r in counted) / total, max(r["largest"] for r in counted)
    write_json(
        str(FILE),
        {
            "environment": environment(),
            "command": COMMAND,
            "draws": total,
            "share": share,
            "largest": largest,
            "rows": rows,
        },
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
