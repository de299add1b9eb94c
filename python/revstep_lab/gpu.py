"""``python -m revstep_lab.gpu``: all that waits for a GPU, in one command that fits a short loan of one.

Its parts run one after the other, each in a process of its own with a limit, the most valuable first: kernels
that agree with the CPU's bit by bit, exact passes of stacks, bandwidth, a training step, what a stack takes
beside its blocks, a pretrained model, the largest batch and throughput of the paper, NVIDIA's memory checker.
After each part the file ``--out`` is whole: a run that is interrupted, or out of time, has lost the part it
was in and nothing else, and the same command goes on with the next one.

    python -m revstep_lab.gpu --out gpu.json --model path/to/SmolLM2-135M
    python -m revstep_lab.gpu --out rehearsal.json --device cpu
    python -m revstep_lab.gpu --out gpu.json --docs docs/benchmarks

``--device cpu`` rehearses: the same parts by the same code on small sizes. No figure of a rehearsal is a
GPU's, and ``--docs`` refuses its file.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from revstep._files import read_json, write_atomic
from revstep.errors import ConfigError

from .tables import table

#: Seconds of all parts together.
MINUTES = 8.0
#: What a file of another program of this name begins with; and the page of the figures.
KIND, PAGE = "revstep_lab.gpu", "gpu.md"
#: Characters of a part's last output that are kept where it failed.
_SAID = 1500
#: A part of a rehearsal may take so many times as long as on the device.
SLOWER = 5
DONE, FAILED, LATE, LEFT_OUT = "done", "failed", "out of time", "left out"


@dataclass(frozen=True)
class Part:
    """One thing to do on the device.

    Attributes:
        name: of the part; a file of ``--docs`` is called ``gpu_NAME.json``.
        what: one line for people.
        limit: seconds after which it is ended.
        words: arguments of Python, given the settings; a part that writes a result has ``OUT`` among them.
        small: words that are added in a rehearsal.
        needs: a sentence why it cannot run here, or None.
    """

    name: str
    what: str
    limit: float
    words: Callable[[argparse.Namespace], Sequence[str]]
    small: Sequence[str] = ()
    needs: Callable[[argparse.Namespace], str | None] = lambda s: None


#: Stands for the file that a part writes.
OUT = "{out}"


def _own(name: str) -> Callable[[argparse.Namespace], list[str]]:
    """A part of :mod:`revstep_lab._gpu_parts`."""
    return lambda s: ["-m", "revstep_lab._gpu_parts", name, "--device", s.device, "--json", OUT]


def _bench(*words: str) -> Callable[[argparse.Namespace], list[str]]:
    return lambda s: ["-m", "revstep", "bench", *words, "--device", s.device, "--json", OUT]


def _model(s: argparse.Namespace) -> list[str]:
    return [*_own("model")(s), *(["--model", s.model] if s.model else [])]


def _without_memcheck(s: argparse.Namespace) -> str | None:
    if s.device != "cuda":
        return "NVIDIA's memory checker looks at kernels on a device"
    return None if shutil.which("compute-sanitizer") else "compute-sanitizer is not installed"


PARTS: tuple[Part, ...] = (
    Part("kernels_agree", "every kernel beside the CPU's, bit by bit", 90, _own("agree"), ("--small",)),
    Part("stacks", "exact passes and gradients of every scheme", 60, _own("stacks"), ("--small",)),
    Part(
        "kernels",
        "bandwidth of each kernel beside a copy",
        60,
        _bench("kernels", "--rounds", "5"),
        ("--sizes", "4096", "--thread-counts", "1"),
    ),
    Part(
        "trunk",
        "a training step, plain, checkpointed and reversible, bfloat16",
        60,
        _bench("trunk", "--dtype", "bfloat16", "--rounds", "7"),
        ("--layers", "2", "--width", "32", "--heads", "2", "--batch", "1", "--length", "16", "--no-memory"),
    ),
    Part(
        "overhead",
        "a reversible step beside its blocks alone",
        45,
        _bench("overhead", "--rounds", "3"),
        ("--layers", "2", "--width", "32", "--heads", "2", "--batch", "1", "--length", "16"),
    ),
    Part("model", "a pretrained model: plain, checkpointed, reversible", 90, _model, ("--small",)),
    Part(
        "batch",
        "the largest batch of the paper's small model",
        90,
        _bench("paper", "--parts", "batch", "--models", "small", "--dtype", "bfloat16"),
        ("--memory-limit", "256", "--most", "2"),
    ),
    Part(
        "throughput",
        "throughput at the largest batch",
        90,
        _bench("paper", "--parts", "throughput", "--dtype", "bfloat16", "--rounds", "3"),
        ("--memory-limit", "192", "--most", "2", "--no-memory"),
    ),
    Part(
        "memcheck",
        "the kernels under NVIDIA's memory checker",
        90,
        _own("memcheck"),
        ("--small",),
        _without_memcheck,
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    settings = _parser().parse_args(argv)
    try:
        return write_docs(settings) if settings.docs else run(settings)
    except ConfigError as error:
        print(f"revstep_lab.gpu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ninterrupted; {settings.out} has the parts that are done, and the same command goes on")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m revstep_lab.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, metavar="FILE", help="results, whole after every part")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"), help="cpu: rehearse, small")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"of all parts (default {MINUTES:g})")
    parser.add_argument(
        "--model", metavar="PATH", help="of SmolLM2; without it its config with random weights"
    )
    parser.add_argument(
        "--source", metavar="FOLDER", help="a checkout to build from where kernels are missing"
    )
    parser.add_argument(
        "--parts", nargs="+", metavar="PART", choices=[p.name for p in PARTS], help="some of them"
    )
    parser.add_argument("--docs", metavar="FOLDER", help="put the results of --out there, with their page")
    return parser


def run(settings: argparse.Namespace) -> int:
    """Run the parts that ``settings.out`` does not have yet. Returns 1 where one failed.

    Raises:
        ConfigError: the file is of something else, or there is no such device and nothing to build.
    """
    ends = time.monotonic() + 60 * settings.minutes
    record = _begun(settings)
    save = lambda: write_atomic(Path(settings.out), json.dumps(record, indent=1).encode())  # noqa: E731
    save()
    if settings.device == "cuda":
        _build(settings)
    for part in PARTS:
        if settings.parts and part.name not in settings.parts:
            continue
        if record["parts"].get(part.name, {}).get("status") in (DONE, LEFT_OUT):
            continue
        left = ends - time.monotonic()
        done = _leave_out(part, settings) or (
            _run(part, settings, min(part.limit * (SLOWER if settings.device == "cpu" else 1), left))
            if left > 1
            else {"status": LATE, "seconds": 0.0}
        )
        record["parts"][part.name] = done
        save()
        print(f"{part.name}: {done['status']}, {done['seconds']:.0f} s{_why(done)}", flush=True)
    if settings.device == "cuda":
        print(f"\n{rows(record)}")
    return int(any(done["status"] in (FAILED, LATE) for done in record["parts"].values()))


def _why(done: dict) -> str:
    last = done.get("said", "").strip().splitlines()
    return f": {last[-1]}" if last else ""


def _begun(settings: argparse.Namespace) -> dict[str, Any]:
    path = Path(settings.out)
    if not path.exists():
        return {"kind": KIND, "device": settings.device, "parts": {}}
    try:
        record = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): choose another --out") from error
    if not isinstance(record, dict) or record.get("kind") != KIND:
        raise ConfigError(f"{path} is no file of this command: choose another --out")
    if record.get("device") != settings.device:
        raise ConfigError(
            f"{path} is of a run on {record.get('device')!r}, and --device is {settings.device}: choose"
            " another --out"
        )
    return record


def _build(settings: argparse.Namespace) -> None:
    """Install the library with its kernels where it is without. Raises ConfigError where that cannot be."""
    why = "from revstep import _C; print(_C.built_with_cuda())"
    if _python(["-c", why]).stdout.strip() == "True":
        return
    source = Path(settings.source or ".")
    if not (source / "csrc").is_dir() or shutil.which("nvcc") is None:
        raise ConfigError(
            "this build of revstep has no CUDA kernels: expected a checkout as --source and nvcc on the PATH"
            " to build them with"
        )
    print("building the CUDA kernels", flush=True)
    words = ["-m", "pip", "install", "--no-deps", "-C", "cmake.define.REVSTEP_CUDA=ON", str(source)]
    made = _python(words)
    if made.returncode:
        raise ConfigError(f"the CUDA kernels cannot be built: {_tail(made)}")


def _python(words: Sequence[str]) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


def _leave_out(part: Part, settings: argparse.Namespace) -> dict | None:
    reason = part.needs(settings)
    return {"status": LEFT_OUT, "seconds": 0.0, "said": reason} if reason else None


def _run(part: Part, settings: argparse.Namespace, limit: float) -> dict[str, Any]:
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "result.json"
        words = [*part.words(settings), *(part.small if settings.device == "cpu" else ())]
        command = [sys.executable, *(str(out) if word == OUT else word for word in words)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                timeout=limit,
                env={**os.environ, "KINETO_LOG_LEVEL": "99"},
            )
        except subprocess.TimeoutExpired:
            return {"status": LATE, "seconds": time.monotonic() - begin, "said": f"ended after {limit:.0f} s"}
        seconds = time.monotonic() - begin
        if done.returncode or not out.exists():
            return {"status": FAILED, "seconds": seconds, "said": _tail(done)}
        return {"status": DONE, "seconds": seconds, "result": json.loads(out.read_text(encoding="utf-8"))}


def _tail(done: subprocess.CompletedProcess) -> str:
    return (done.stdout + done.stderr).strip()[-_SAID:] or f"ended with {done.returncode} and said nothing"


# ---- From results to the documentation ----


def rows(record: dict[str, Any]) -> str:
    """A row of Markdown for each goal of each part: what, measured, goal, met or not."""
    found = []
    for name, done in record["parts"].items():
        for goal in _goals(done.get("result", {})):
            sign = "at least" if goal["at_least"] else "at most"
            met = "met" if goal["met"] else "NOT met"
            found.append((name, goal["what"], f"{goal['value']:.4g}", f"{sign} {goal['goal']:g}", met))
        if done["status"] != DONE:
            found.append((name, done["status"], "-", "-", "not measured"))
    return table(("part", "what", "measured", "goal", ""), found)


def _goals(result: dict) -> list[dict]:
    parts = result["parts"].values() if "parts" in result else [result]
    return [goal for part in parts for goal in part.get("goals", [])]


def write_docs(settings: argparse.Namespace) -> int:
    """Results of ``revstep bench`` as files of ``settings.docs``, and a page with their marks and all rows.

    Raises:
        ConfigError: a rehearsal, or nothing measured.
    """
    record = _begun(settings)
    if record["device"] != "cuda":
        raise ConfigError(f"{settings.out} is a rehearsal on the CPU: there is nothing of a GPU to document")
    folder = Path(settings.docs)
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder: expected docs/benchmarks of a checkout")
    done = {name: part["result"] for name, part in record["parts"].items() if part["status"] == DONE}
    if not done:
        raise ConfigError(f"{settings.out} has no part that is done: run it on a GPU first")
    marks = []
    for name, result in done.items():
        if "bench" in result:
            write_atomic(folder / f"gpu_{name}.json", json.dumps(result, indent=1).encode())
            marks.append(
                f"<!-- figures of docs/benchmarks/gpu_{name}.json, by docs/generate.py -->\n"
                f"<!-- /figures of gpu_{name}.json -->\n"
            )
    page = (
        "# On a GPU\n\nMeasured by one run of `python -m revstep_lab.gpu`; each part has a process.\n\n"
        f"{rows(record)}\n\n" + "\n".join(marks)
    )
    write_atomic(folder / PAGE, page.encode())
    print(f"wrote {len(marks)} files and {folder / PAGE}; run python docs/generate.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
