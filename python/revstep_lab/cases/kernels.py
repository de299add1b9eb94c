"""``revstep bench kernels``: bandwidth of every kernel against a copy of the same bytes on the same device,
and the cost of a call against torch.add's.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from revstep import ops
from revstep._recurrence.walk import below_autograd
from revstep.errors import ConfigError

from ..bench.runner import Measurement, environment, goal, measure, retained

#: Of the copy's bandwidth at least this much, from so many elements on; of torch.add's time at most so much,
#: at this many.
BANDWIDTH, LARGE = 0.90, 2**22
OVERHEAD, SMALL = 5.0, 64
#: Calls are repeated within one timing until they have gone through so many elements, or so many times.
_WORK, _CALLS = 2**20, 256
_FRAC = 20
_HALF = (0.5, 0.5, 1.5)
_OTHER = (-0.5, 1.5, 0.5)


@dataclass(frozen=True)
class KernelCase:
    """What is measured: kernels on ``sizes`` elements of int32 states with values and views of ``dtype``, on
    each of these numbers of CPU threads.
    """

    sizes: tuple[int, ...] = (2**12, 2**16, 2**20, 2**22, 2**24)
    thread_counts: tuple[int, ...] = (1, 2)
    dtype: str = "float32"
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16", "float16"):
            raise ConfigError(f"dtype is {self.dtype!r}, expected 'float32', 'bfloat16' or 'float16'")
        if self.device not in ("cpu", "cuda") or (self.device == "cuda" and not torch.cuda.is_available()):
            raise ConfigError(
                f"device is {self.device!r}, expected 'cpu'"
                + (" or 'cuda'" if torch.cuda.is_available() else ": no CUDA device is visible")
            )
        for name, least in (("sizes", 64), ("thread_counts", 1)):
            values = getattr(self, name)
            if not values or min(values) < least:
                raise ConfigError(f"{name} is {values}, expected at least one number, none below {least}")


@dataclass(frozen=True)
class Kernel:
    """One call, and the bytes that it must read and write."""

    call: Callable[[], object]
    nbytes: int


def kernels(n: int, dtype: torch.dtype, device: str) -> dict[str, Kernel]:
    """Every operator at ``n`` elements, in eight rows (samples of a batch), every second one with the other
    coefficients.
    """
    shape = (8, n // 8)
    generator = torch.Generator().manual_seed(0)
    prev, cur = (
        torch.randint(-(2**24), 2**24, shape, dtype=torch.int32, generator=generator).to(device)
        for _ in range(2)
    )
    f = torch.randn(shape, generator=generator).to(device, dtype)
    choice = (torch.arange(shape[0]) % 2).to(device, torch.uint8)
    rows = choice, list(_OTHER)
    carry = ops.step(prev, cur, f, *_HALF, _FRAC, dtype)[2]
    none = ops.step(prev, None, f, 1.0, 0.0, 1.0, _FRAC, dtype)[2]
    row_carry = ops.step(prev, cur, f, *_HALF, _FRAC, dtype, *rows)[2]
    n, v, bits = prev.numel(), f.element_size(), carry.numel() * 4
    state, by_row = 4 * n, choice.numel()
    short, long = 2 * state + 2 * v * n, 3 * state + 2 * v * n + bits
    return {
        "step, Midpoint": Kernel(lambda: ops.step(prev, None, f, 1.0, 0.0, 1.0, _FRAC, dtype), short),
        "inverse, Midpoint": Kernel(
            lambda: ops.inverse(prev, None, f, none, 1.0, 0.0, 1.0, _FRAC, dtype), short
        ),
        "step, Blend(1/2)": Kernel(lambda: ops.step(prev, cur, f, *_HALF, _FRAC, dtype), long),
        "inverse, Blend(1/2)": Kernel(lambda: ops.inverse(prev, cur, f, carry, *_HALF, _FRAC, dtype), long),
        "step, rows (BDIA)": Kernel(
            lambda: ops.step(prev, cur, f, *_HALF, _FRAC, dtype, *rows), long + by_row
        ),
        "inverse, rows (BDIA)": Kernel(
            lambda: ops.inverse(prev, cur, f, row_carry, *_HALF, _FRAC, dtype, *rows), long + by_row
        ),
        "encode": Kernel(lambda: ops.encode(f, torch.int32, _FRAC, dtype), state + 2 * v * n),
        "decode": Kernel(lambda: ops.decode(prev, _FRAC, dtype), state + v * n),
        "checksum": Kernel(lambda: ops.checksum(prev), state),
        "gradient": Kernel(lambda: ops.scale(f, list(_HALF), dtype), 4 * v * n),
        "gradient, rows": Kernel(lambda: ops.scale(f, list(_HALF), dtype, *rows), 4 * v * n + by_row),
    }


def copies(nbytes: Iterable[int], device: str) -> list[Callable[[], Tensor]]:
    """For each of these numbers a copy that reads and writes so many bytes together, in memory that is there
    already.
    """
    words = [max(1, n // 8) for n in nbytes]
    source = torch.zeros(max(words), dtype=torch.int32, device=device)
    target = torch.zeros_like(source)
    return [lambda a=target[:n], b=source[:n]: a.copy_(b) for n in words]


def run_kernels(case: KernelCase, rounds: int = 15) -> dict:
    """``{"case", "environment", "rows", "overhead", "goals"}``, ready for JSON. CPU times on one thread are
    processor time, which others on the machine disturb less.

    A row: bytes, and for outputs in fresh memory (``fresh``: as the allocator gives it) and in memory the
    process already has (``retained``) the bandwidth and the ratio to the copy's. On CUDA torch's allocator
    always retains.
    """
    dtype, before = getattr(torch, case.dtype), torch.get_num_threads()
    rows: list[dict] = []
    try:
        # In this order: what glibc does by itself ends with the first word to it.
        for memory in ("fresh", "retained"):
            with (
                retained() if memory == "retained" and case.device == "cpu" else contextlib.nullcontext(True)
            ) as there:
                found = []
                for threads in case.thread_counts if case.device == "cpu" else (1,):
                    torch.set_num_threads(threads)
                    for n in case.sizes:
                        found += _bandwidth(n, dtype, case.device, threads, rounds, memory, there)
            rows = [{**row, memory: new[memory]} for row, new in zip(rows or found, found)]
        torch.set_num_threads(1)
        overhead = _overhead(dtype, case.device, rounds)
    finally:
        torch.set_num_threads(before)
    return {
        "case": asdict(case),
        "environment": environment(case.device),
        "rows": rows,
        "overhead": overhead,
        "goals": _goals(rows, overhead),
    }


def _bandwidth(
    n: int, dtype: torch.dtype, device: str, threads: int, rounds: int, memory: str, there: bool
) -> list[dict]:
    found = kernels(n, dtype, device)
    repeats = min(max(1, _WORK // n), _CALLS)
    variants: dict[str, Callable[[], None]] = {}
    for (name, kernel), copy in zip(
        found.items(), copies((kernel.nbytes for kernel in found.values()), device)
    ):
        variants[name] = _repeated(kernel.call, repeats)
        variants[f"copy, {name}"] = _repeated(copy, repeats)
    times = {m.name: m for m in _measure(variants, rounds, device, threads)} if there else {}
    return [
        {
            "kernel": name, "n": n, "threads": threads, "bytes": kernel.nbytes,
            memory: _rates(times, name, kernel.nbytes * repeats / 1e9) if there else None,
        }
        for name, kernel in found.items()
    ]  # fmt: skip


def _rates(times: dict[str, Measurement], name: str, gigabytes: float) -> dict:
    """``gb_s`` from the median; ``p20_gb_s``, ``p80_gb_s`` from the slower and the faster of the percentiles
    of time.
    """
    ours, theirs = times[name], times[f"copy, {name}"]
    return {
        "gb_s": gigabytes / ours.p50,
        "p20_gb_s": gigabytes / ours.p80,
        "p80_gb_s": gigabytes / ours.p20,
        "copy_gb_s": gigabytes / theirs.p50,
        "of_copy": theirs.ratios[name],
    }


def _overhead(dtype: torch.dtype, device: str, rounds: int) -> list[dict]:
    """Seconds a call on few elements, and the ratio to torch.add's."""
    a, b = torch.randn(SMALL, device=device), torch.randn(SMALL, device=device)
    variants = {
        "torch.add": lambda: torch.add(a, b),
        **{name: kernel.call for name, kernel in kernels(64, dtype, device).items()},
    }
    rows = _measure({name: _repeated(call, _CALLS) for name, call in variants.items()}, rounds, device, 1)
    return [
        {"kernel": m.name, "seconds": m.p50 / _CALLS, "of_add": m.ratios.get("torch.add", 1.0)} for m in rows
    ]


def _repeated(call: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        with below_autograd():  # as a stack calls its operators
            for _ in range(times):
                call()

    return run


def _measure(
    variants: dict[str, Callable[[], None]], rounds: int, device: str, threads: int
) -> list[Measurement]:
    clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter
    return measure(
        variants, rounds, sync=torch.cuda.synchronize if device == "cuda" else lambda: None, clock=clock
    )


def _goals(rows: list[dict], overhead: list[dict]) -> list[dict]:
    large = [r for r in rows if r["n"] >= LARGE and r["retained"] is not None]
    names = dict.fromkeys((r["kernel"], r["threads"]) for r in large)
    worst = {
        key: min(r["retained"]["of_copy"] for r in large if (r["kernel"], r["threads"]) == key)
        for key in names
    }
    called = max((r["of_add"] for r in overhead[1:]), default=float("nan"))
    return [
        *(
            goal(
                f"{name}, {threads} thread{'s' if threads > 1 else ''}: bandwidth / copy, n >= 2^22",
                value,
                BANDWIDTH,
                True,
            )
            for (name, threads), value in worst.items()
        ),
        goal(f"a call on {SMALL} elements, dearest operator / torch.add", called, OVERHEAD, False),
    ]


# ------------------------------------------------------------------------------------------------------------
# The case as ``revstep bench`` takes it: its name, its options, its tables and its goals.

NAME = "kernels"
HELP = "bandwidth of every kernel against a copy of the same bytes, and the cost of a call"
EXAMPLES = """
revstep bench kernels --sizes 4194304 --thread-counts 1
"""
ROUNDS = 15
#: Option -> (settings for argparse, help); the defaults are KernelCase's.
OPTIONS: dict[str, tuple[dict, str]] = {
    "sizes": (
        {"type": int, "nargs": "+"},
        "elements of a state (default 4096 65536 1048576 4194304 16777216)",
    ),
    "thread-counts": ({"type": int, "nargs": "+"}, "CPU threads (default 1 2)"),
    "dtype": ({}, "of values and views: float32, bfloat16 or float16 (default float32)"),
    "device": ({}, "cpu or cuda (default cpu)"),
}


def run(options: dict[str, Any], settings: Any) -> dict:

    result = run_kernels(
        KernelCase(**{name: tuple(v) if isinstance(v, list) else v for name, v in options.items()}),
        settings.rounds,
    )
    settings.show(result)
    return result


def tables(result: dict) -> list:
    rows = [
        (
            row["kernel"],
            f"{row['n']:,}",
            str(row["threads"]),
            f"{row['bytes'] / row['n']:.2f}",
            *_rate_cells(row["fresh"]),
            *_rate_cells(row["retained"]),
        )
        for row in result["rows"]
    ]
    called = [
        (row["kernel"], f"{row['seconds'] * 1e6:.2f}", f"{row['of_add']:.2f}") for row in result["overhead"]
    ]
    title = f"int32 states, {result['case']['dtype']} values, each kernel beside a copy"
    return [
        (
            title,
            (
                "kernel",
                "elements",
                "threads",
                "bytes each",
                "fresh GB/s",
                "/ copy",
                "retained GB/s",
                "/ copy",
            ),
            rows,
        ),
        ("A call on few elements", ("operator", "us", "/ torch.add"), called),
    ]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])


def _rate_cells(found: dict | None) -> tuple[str, str]:
    return (
        ("-", "-")
        if found is None
        else (
            f"{found['gb_s']:.1f} ({found['p20_gb_s']:.1f} to {found['p80_gb_s']:.1f})",
            f"{found['of_copy']:.2f}",
        )
    )
