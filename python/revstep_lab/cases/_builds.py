"""Steps and runs of this build of revstep beside those of another one, each in a process
of its own, in turn.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from revstep.errors import ConfigError

from ..bench.runner import goal, summary
from .trunk import TrunkCase

#: A step of this build at most this much beside one of the other.
TO_OTHER_BUILD = 1.02
NAMES = ("this build", "the other build")

#: What both processes run: only names that revstep has had since 0.1.0. It reads a job, says what it is, and
#: answers each further line with the seconds of a step.
_STEPS = """
import gc, importlib, json, sys, time, warnings

job = json.loads(sys.stdin.readline())
warnings.simplefilter("ignore")
import torch

torch.set_num_threads(job["threads"])
import revstep

# Where the benchmark has been: now, for a while before, and in 0.1.0, which had it inside.
for name in ("revstep_lab.cases.trunk", "revstep_lab.bench.trunk", "revstep.bench.trunk"):
    try:
        trunk = importlib.import_module(name)
        break
    except ModuleNotFoundError:
        pass
from revstep.schemes import make

case = trunk.TrunkCase(**job["case"])
stack = revstep.ReversibleStack(trunk.blocks_of(case), make(case.scheme))
step = trunk.one_step(case, stack, torch.randn(case.batch, case.length, case.width, device=case.device))
wait = torch.cuda.synchronize if case.device == "cuda" else lambda: None
clock = time.process_time if job["threads"] == 1 and case.device == "cpu" else time.perf_counter
step()
step()
gc.collect()
gc.freeze()
about = {"revstep": revstep.__version__, "torch": torch.__version__, "folder": revstep.__path__[0]}
print(json.dumps(about), flush=True)
for _ in sys.stdin:
    gc.collect()
    wait()
    start = clock()
    step()
    wait()
    print(clock() - start, flush=True)
"""


class Build:
    """A process that times one step, or one run, of a case whenever it is asked. A context manager.

    Args:
        python: the interpreter whose revstep is measured.
        path: what PYTHONPATH is there, None for no PYTHONPATH.
        case: the trunk, or another dataclass.
        program: what it runs: reads ``{"case", "threads"}``, answers with a line of JSON about itself, then
            with the seconds of the step or run that each further line names.

    Raises:
        ConfigError: there is no such program, or its revstep cannot run the case; says what it wrote.
    """

    def __init__(self, python: str, path: str | None, case: Any, program: str = _STEPS):
        found = shutil.which(python)
        if found is None:
            expected = "a Python with another revstep: other/bin/python"
            raise ConfigError(f"against is {python!r}, expected {expected}")
        self.python = os.path.abspath(found)  # its links are kept: they say which environment it is
        self._case, self._path, self._program = case, path, program

    def __enter__(self) -> Build:
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if self._path is not None:
            environment["PYTHONPATH"] = self._path
        folder = tempfile.TemporaryDirectory()  # no revstep lies in it, and it takes what the process says
        self._folder, self._said = folder, Path(folder.name, "said")
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with self._said.open("wb") as said:
            command = [self.python, "-c", self._program]
            self._process = subprocess.Popen(command, stderr=said, env=environment, cwd=folder.name, **pipes)
        try:
            job = {"case": asdict(self._case), "threads": torch.get_num_threads()}
            self.about = json.loads(self._ask(json.dumps(job)))
            self.folder = self.about.pop("folder")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def seconds(self, name: str = "") -> float:
        """Of one more step, or of one more run of this name."""
        return float(self._ask(name))

    def _ask(self, line: str) -> str:
        with contextlib.suppress(BrokenPipeError):  # it has ended: the missing answer says so
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            text = self._said.read_text(encoding="utf-8", errors="replace").strip()
            said = (text.splitlines() or ["nothing"])[-1]
            wanted = "an environment with torch and revstep 0.1.0 or later"
            raise ConfigError(f"{self.python} cannot time a step, it said {said!r}: expected {wanted}")
        return answer


def _check_apart(ours: Build, theirs: Build) -> None:
    """Raises ConfigError where the ratio would not be that of two builds of revstep."""
    if ours.folder == theirs.folder:
        raise ConfigError(f"{theirs.python} has this very revstep, {ours.folder}: expected another build")
    here, there = ours.about["torch"], theirs.about["torch"]
    if here != there:
        what_to_do = "install the other revstep beside the same torch"
        raise ConfigError(f"{theirs.python} has torch {there}, expected {here} as here: {what_to_do}")


@contextlib.contextmanager
def both(case: Any, python: str, *program: str) -> Iterator[dict[str, Build]]:
    """This build and that of ``python``, by :data:`NAMES`. Raises ConfigError as :func:`run_against`."""
    here = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with Build(sys.executable, path, case, *program) as ours, Build(python, None, case, *program) as theirs:
        _check_apart(ours, theirs)
        yield dict(zip(NAMES, (ours, theirs)))


def in_turn(builds: dict[str, Build], rounds: int, *of: str) -> dict[str, list[float]]:
    """Seconds of one step (or of the run named) of each build, round by round; which is first turns every
    round.
    """
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for r in range(rounds):
        for name in NAMES[r % 2 :] + NAMES[: r % 2]:
            times[name].append(builds[name].seconds(*of))
    return times


def run_against(case: TrunkCase, python: str, rounds: int) -> dict:
    """A step of a default stack of ``case.scheme`` in both builds; which is first turns every round.

    Args:
        case: the trunk.
        python: the interpreter of the environment with the other build, which is run without PYTHONPATH.
        rounds: steps of each.

    Returns:
        ``{"scheme", "measurements", "goals", "builds"}``.

    Raises:
        ConfigError: as :class:`Build`, or the two have one revstep, or different versions of torch.
    """
    with both(case, python) as builds:
        times = in_turn(builds, rounds)
    rows = [summary(name, times) for name in NAMES]
    what = f"{NAMES[0]} / {NAMES[1]}, {case.scheme}, {case.dtype}"
    return {
        "scheme": case.scheme,
        "measurements": [m.to_dict() for m in rows],
        "goals": [goal(what, rows[0].ratios[NAMES[1]], TO_OTHER_BUILD, False)],
        "builds": {name: build.about for name, build in builds.items()},
    }


# ---- Integrations of this build of revstep beside those of another one ----

#: A gradient of this build at most this much beside one of the other: finding what acts is part of it.
GRADIENT = 1.05
CHILD = Path(__file__).parents[1] / "bench" / "runs_child.py"


def bound_of(name: str) -> float | None:
    """What a run may take beside the other build's, as a ratio. None where there is no goal.

    A run of few steps has none: choosing its units and judging its grid are in its time.
    """
    if name.startswith("neural field"):
        return GRADIENT if name.endswith("gradient") else None
    return None if name.startswith("one pendulum") else TO_OTHER_BUILD


def run_ode_against(case: Any, python: str, rounds: int) -> dict:
    """Every run that both builds know, in turn.

    Args:
        case: an :class:`~.ode.OdeCase`.
        python: the interpreter of the environment with the other build, which is run without PYTHONPATH.
        rounds: runs of each.

    Returns:
        ``{"rows": [measurement of this build, with "other": that build's percentiles], "goals", "builds"}``.

    Raises:
        ConfigError: as :func:`run_against`, or the builds know different runs.
    """
    found: list[dict] = []
    goals = []
    with both(case, python, CHILD.read_text(encoding="utf-8")) as builds:
        known = [build.about.pop("runs") for build in builds.values()]
        if known[0] != known[1]:
            raise ConfigError(
                f"the builds know the runs {known[0]} and {known[1]}, expected the same in both"
            )
        for name in known[0]:
            times = in_turn(builds, rounds, name)
            ours, theirs = (summary(build, times) for build in NAMES)
            other = {"p20": theirs.p20, "p50": theirs.p50, "p80": theirs.p80}
            found.append({**ours.to_dict(), "name": name, "other": other})
            bound = bound_of(name)
            if bound is not None:
                goals.append(goal(f"{NAMES[0]} / {NAMES[1]}, {name}", ours.ratios[NAMES[1]], bound, False))
        about = {name: build.about for name, build in builds.items()}
    return {"rows": found, "goals": goals, "builds": about}
