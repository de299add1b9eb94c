"""``revstep bench kernels``: bandwidth of every kernel against a copy of the same bytes, and the cost of a call."""

from __future__ import annotations

from typing import Any

NAME = "kernels"
HELP = "bandwidth of every kernel against a copy of the same bytes, and the cost of a call"
EXAMPLES = """
revstep bench kernels --sizes 4194304 --thread-counts 1
"""
ROUNDS = 15
#: Option -> (settings for argparse, help); the defaults are KernelCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "sizes": ({"type": int, "nargs": "+"}, "elements of a state (default 4096 65536 1048576 4194304 16777216)"),
    "thread-counts": ({"type": int, "nargs": "+"}, "CPU threads (default 1 2)"),
    "dtype": ({}, "of values and views: float32, bfloat16 or float16 (default float32)"),
    "device": ({}, "cpu or cuda (default cpu)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:
    from ..bench import KernelCase, run_kernels

    result = run_kernels(KernelCase(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}), settings.rounds)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    rows = [
        (row["kernel"], f"{row['n']:,}", str(row["threads"]), f"{row['bytes'] / row['n']:.2f}", *_rates(row["fresh"]), *_rates(row["retained"]))
        for row in result["rows"]
    ]
    called = [(row["kernel"], f"{row['seconds'] * 1e6:.2f}", f"{row['of_add']:.2f}") for row in result["overhead"]]
    title = f"int32 states, {result['case']['dtype']} values, each kernel beside a copy"
    return [
        (title, ("kernel", "elements", "threads", "bytes each", "fresh GB/s", "/ copy", "retained GB/s", "/ copy"), rows),
        ("A call on few elements", ("operator", "us", "/ torch.add"), called),
    ]  # fmt: skip


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..goals import rows

    return rows(result["goals"])


def _rates(found: dict | None) -> tuple[str, str]:
    return ("-", "-") if found is None else (f"{found['gb_s']:.1f} ({found['p20_gb_s']:.1f} to {found['p80_gb_s']:.1f})", f"{found['of_copy']:.2f}")
