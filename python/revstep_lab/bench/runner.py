"""Interleaved timing of the variants of a benchmark, the environment that its figures carry, and the goals
that they are held against.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import gc
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch

# ------------------------------------------------------------------------------------------------------------
# Whether the C library gives freed memory back to the system, for the length of a measurement.

#: mallopt's names for: the largest block that is not mapped on its own, the free memory at the top that is
#: kept. And glibc's own values.
_MMAP, _TRIM = -3, -1
_OWN, _ALL = 128 * 1024, 2**31 - 1


@contextlib.contextmanager
def retained() -> Iterator[bool]:
    """Freed memory stays with the process, so that an output of an operator needs no new pages. False where
    that cannot be set: no glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    done = mallopt is not None and bool(mallopt(_MMAP, _ALL // 2) and mallopt(_TRIM, _ALL))
    try:
        yield done
    finally:
        if done:
            mallopt(_MMAP, _OWN)
            mallopt(_TRIM, _OWN)


# ------------------------------------------------------------------------------------------------------------
# Interleaved timing: A B C A B C ..., ratios taken round by round, so that a drifting machine cancels.


@dataclass(frozen=True)
class Measurement:
    """Seconds of one variant (20th, 50th, 80th percentile over rounds) and the median ratio to each other
    variant.
    """

    name: str
    p20: float
    p50: float
    p80: float
    ratios: dict[str, float]

    def to_dict(self) -> dict:
        return asdict(self)


def environment(device: str = "cpu") -> dict:
    """Device, date, versions and commit: what a figure must carry. ``device``: the torch device that did the
    work.
    """
    from revstep import __version__

    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "revstep": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            name = next(line.split(":", 1)[1].strip() for line in f if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _commit() -> str:
    """Commit of the working directory's checkout; empty outside one."""
    run = (
        subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        if _has_git()
        else None
    )
    return run.stdout.strip() if run and run.returncode == 0 else ""


def _has_git() -> bool:
    from shutil import which

    return which("git") is not None


def per(rows: list[Measurement], counts: dict[str, float]) -> list[Measurement]:
    """The same rows per unit of work, ``counts`` units a call of each variant: seconds a unit, and ratios of
    those.
    """
    return [
        Measurement(
            m.name, *(x / counts[m.name] for x in (m.p20, m.p50, m.p80)),
            {other: ratio * counts[other] / counts[m.name] for other, ratio in m.ratios.items()},
        )
        for m in rows
    ]  # fmt: skip


def goal(what: str, value: float, bound: float, at_least: bool) -> dict:
    """A goal and whether it is met; NaN never is."""
    return {
        "what": what,
        "value": value,
        "goal": bound,
        "at_least": at_least,
        "met": bool(value >= bound if at_least else value <= bound),
    }


def measure(
    variants: dict[str, Callable[[], None]],
    rounds: int,
    warmup: int = 2,
    sync: Callable[[], None] = lambda: None,
    clock: Callable[[], float] | None = None,
) -> list[Measurement]:
    """Time each variant once a round, ``rounds`` times after ``warmup`` uncounted rounds; the order turns by
    one each round. ``clock``: None for wall time.
    """
    clock = clock or time.perf_counter
    names = list(variants)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.freeze()  # what is there already need not be looked through before every call
    try:
        for r in range(warmup + rounds):
            for name in names[r % len(names) :] + names[: r % len(names)]:
                gc.collect()
                sync()
                start = clock()
                variants[name]()
                sync()
                if r >= warmup:
                    times[name].append(clock() - start)
    finally:
        gc.unfreeze()
    return [summary(name, times) for name in names]


def own_clock() -> Callable[[], float] | None:
    """For :func:`measure`: processor time where torch has one thread, so that other work on the machine is
    not counted; None, wall time, where it has several.
    """
    return time.process_time if torch.get_num_threads() == 1 else None


def summary(name: str, times: dict[str, list[float]]) -> Measurement:
    """The row of one variant. ``times``: the seconds of every variant, round by round."""
    own = times[name]
    cut = statistics.quantiles(own, n=10, method="inclusive") if len(own) > 1 else own * 9
    ratios = {
        other: statistics.median(a / b for a, b in zip(own, theirs))
        for other, theirs in times.items()
        if other != name
    }
    return Measurement(name, cut[1], statistics.median(own), cut[7], ratios)
