"""Peak memory of one training step, by torch's allocator and by the process, measured in an untimed step of a
fresh child process for each variant.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch

from revstep.errors import RevstepError

_STATUS = Path("/proc/self/status")
#: For glibc: from how many bytes on a block comes from the kernel by itself, and goes back to it when it is
#: freed. It has to be in the environment before Python starts: a heap that has had large blocks keeps them.
PROMPT = "MALLOC_MMAP_THRESHOLD_"
_BETWEEN = "revstep: forward is over"
#: A step to be measured: runs forward and backward and calls ``between()`` after the forward pass.
Step = Callable[[Callable[[], None]], Any]


def by_allocator(step: Step, device: str = "cpu") -> dict[str, int]:
    """``kept``: bytes alive when the forward pass is over and not before. ``peak``: most bytes alive at once
    above those before.

    On the CPU every allocation and release that torch's allocator reports is added up, scratch of operators
    included; on CUDA the allocator's own counters.
    """
    if device == "cuda":
        return _cuda(step)
    from torch.profiler import ProfilerActivity, profile, record_function

    def between() -> None:
        with record_function(_BETWEEN):
            pass

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(between)
    live = peak = 0
    kept = None
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
        elif event.name() == _BETWEEN:
            kept = live
    if kept is None:
        raise RevstepError("the step did not call between() after its forward pass")
    return {"kept": kept, "peak": peak}


def _cuda(step: Step) -> dict[str, int]:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before, kept = torch.cuda.memory_allocated(), []
    step(lambda: kept.append(torch.cuda.memory_allocated()))
    torch.cuda.synchronize()
    if not kept:
        raise RevstepError("the step did not call between() after its forward pass")
    return {"kept": kept[0] - before, "peak": torch.cuda.max_memory_allocated() - before}


def by_process(step: Step, prompt: bool = False) -> int | None:
    """Most resident bytes of this process during the step above those before it (VmHWM); None where the
    kernel does not tell.

    Args:
        step: what is measured.
        prompt: what is resident has to be what lives: None unless ``PROMPT`` is in the environment.
    """
    if prompt and PROMPT not in os.environ:
        return None
    try:
        # The high-water mark starts again from what is resident now.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    before = _status("VmRSS")
    step(lambda: None)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(), re.M)
    if found is None:
        raise RevstepError(f"{_STATUS} has no line {name}")
    return 1024 * int(found[1])


def in_children(
    steps: Callable[[Any, str], tuple[Step, Step, Callable[[], None]]], case: Any, names: list[str]
) -> dict[str, dict]:
    """``{name: {"kept", "peak", "process"}}``: each variant of a case measured in a child process of its own.

    Args:
        steps: module-level function of a case and a name: ``(step, small step that warms up, what forgets the
            gradients)``.
        case: a dataclass. names: the variants to measure.

    Raises:
        RevstepError: a child failed; says what it wrote.
    """
    return {name: _child(steps, case, name) for name in names}


def _child(steps: Callable, case: Any, name: str) -> dict:
    if not is_dataclass(case):
        raise RevstepError(f"case is {type(case).__name__}, expected a dataclass")
    job = {
        "steps": [steps.__module__, steps.__qualname__],
        "case": [type(case).__module__, type(case).__qualname__, asdict(case)],
        "name": name,
    }
    job["threads"] = torch.get_num_threads()
    run = subprocess.run(
        [sys.executable, "-m", "revstep_lab.bench.peaks"],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        env={**os.environ, "KINETO_LOG_LEVEL": "99"},
    )
    lines = run.stdout.splitlines()
    if run.returncode or not lines:
        said = (run.stderr.strip().splitlines() or ["nothing"])[-1]
        raise RevstepError(
            f"the process that measures the memory of {name!r} ended with {run.returncode}: {said}"
        )
    return json.loads(lines[-1])


def measured(step: Step, small: Step, forget: Callable[[], None], device: str) -> dict:
    """What a child reports of its variant: the process first, since everything that runs leaves its mark on
    what is resident.
    """
    small(lambda: None)  # code and thread stacks become resident
    forget()
    gc.collect()
    process = by_process(step)
    forget()
    return {**by_allocator(step, device), "process": process}


# ------------------------------------------------------------------------------------------------------------
# The process in which :func:`in_children` measures one variant: reads what to do from stdin, writes one line
# of JSON. It is ``python -m revstep_lab.bench.peaks``.


def main() -> None:
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    module, name, options = job["case"]
    case = getattr(importlib.import_module(module), name)(**options)
    steps = getattr(importlib.import_module(job["steps"][0]), job["steps"][1])
    warnings.simplefilter("ignore")
    print(json.dumps(measured(*steps(case, job["name"]), case.device)))


if __name__ == "__main__":
    main()
