"""``revstep bench kernels``: bandwidth of every kernel against a copy of the same bytes, and the cost of a call."""

from __future__ import annotations

from typing import Any

ROUNDS = 15
#: Option -> (settings for argparse, help); the defaults are KernelCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "sizes": ({"type": int, "nargs": "+"}, "elements of a state (default 4096 65536 1048576 4194304 16777216)"),
    "thread-counts": ({"type": int, "nargs": "+"}, "CPU threads (default 1 2)"),
    "dtype": ({}, "of values and views: float32, bfloat16 or float16 (default float32)"),
    "device": ({}, "cpu or cuda (default cpu)"),
}


def run(options: dict[str, Any], rounds: int) -> dict:
    from ...bench import KernelCase, run_kernels
    from .. import output

    result = run_kernels(KernelCase(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}), rounds)
    env = result["environment"]
    print(f"{env['device']}, torch {env['torch']}, {env['date']}, int32 states, {result['case']['dtype']} values, medians of {rounds} rounds beside the copy\n")
    rows = [
        (row["kernel"], f"{row['n']:,}", str(row["threads"]), f"{row['bytes'] / row['n']:.2f}", *_rates(row["fresh"]), *_rates(row["retained"]))
        for row in result["rows"]
    ]
    print(output.table(("kernel", "elements", "threads", "bytes each", "fresh GB/s", "/ copy", "retained GB/s", "/ copy"), rows))
    print()
    called = [(row["kernel"], f"{row['seconds'] * 1e6:.2f}", f"{row['of_add']:.2f}") for row in result["overhead"]]
    print(output.table(("call on few elements", "us", "/ torch.add"), called))
    print()
    output.print_goals(result["goals"])
    return result


def _rates(found: dict | None) -> tuple[str, str]:
    return ("-", "-") if found is None else (f"{found['gb_s']:.1f}", f"{found['of_copy']:.2f}")
