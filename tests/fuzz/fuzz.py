"""Hostile commands: every command of ``revstep`` on odd options, odd places to write and damaged files.

    python tests/fuzz/fuzz.py --seconds 600              as many commands as fit
    python tests/fuzz/fuzz.py --commands 1000 --seed 3   so many
    python tests/fuzz/fuzz.py --seed 3 --case 17         one of them again, with what it said

Case ``i`` of seed ``s`` is the same everywhere. Exit code 1 where a command raised, aborted, hung, lost or
changed a file that it was not to write, or was refused and wrote all the same. Everything happens in a folder
of its own.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "hf")]

import fuzz_child  # noqa: E402
import fuzz_commands  # noqa: E402
import fuzz_damage  # noqa: E402
import fuzz_named  # noqa: E402
import fuzz_rules  # noqa: E402
import fuzz_samples  # noqa: E402

#: Libraries that commands import, here and once.
IMPORTED = (
    "torch", "transformers", "transformers.trainer", "transformers.models.llama.modeling_llama", "peft",
    "accelerate",
    "matplotlib.figure", "tokenizers", "safetensors.torch", "gguf", "revstep.hf", "revstep.plan",
    "revstep.lm._trainer",
    "revstep_lab.commands.bench", "revstep_lab.commands.verify", "revstep_lab.demo",
    "revstep._cli.commands.train",
    "revstep.lm._sampler", "revstep.hf._sources", "revstep.hf._finetune", "torch._dynamo", "torch.optim",
)  # fmt: skip


@dataclass
class Case:
    """A command line, what is damaged before it, and the limits under which it runs."""

    argv: list[str]
    damages: list[str] = field(default_factory=list)
    limits: fuzz_child.Limits = field(default_factory=fuzz_child.Limits)

    def __str__(self) -> str:
        said = "revstep " + " ".join(
            shlex.quote(word if len(word) < 80 else f"{word[:60]}...({len(word)})") for word in self.argv
        )
        around = [f"{k}={v}" for k, v in vars(self.limits).items() if v != getattr(fuzz_child.Limits(), k)]
        return ascii("; ".join([said, *self.damages, *around]))[1:-1]


def case(seed: int, number: int, folder: Path) -> Case:
    """Case ``number`` of ``seed``; ``folder`` holds the samples, and some of them are damaged."""
    rng = Random(f"{seed}:{number}")
    if number % 2 == 0 and number // 2 < len(fuzz_named.COMMANDS):
        argv, limits, prepare = fuzz_named.COMMANDS[number // 2]
        return Case(list(argv), [prepare(folder)] if prepare else [], limits)
    made = Case(fuzz_commands.mutate(rng.choice(fuzz_commands.BASES), rng))
    if rng.random() < 0.5:
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            path = rng.choice([folder, *_used(made.argv, folder, rng)])
            if path.is_file() and not path.is_symlink():
                made.damages.append(f"{path.relative_to(folder)}: {fuzz_damage.damage(path, rng)}")
    draw = rng.random()
    if draw < 0.10:
        made.limits = fuzz_child.Limits(file=rng.choice((0, 1, 100, 1000, 5000, 20_000, 60_000)))
    elif draw < 0.16:
        made.limits = fuzz_child.Limits(encoding=rng.choice(("ascii", "latin-1", "cp1252")))
    elif draw < 0.20:
        made.limits = fuzz_child.Limits(stdout=rng.choice(("/dev/full", "/dev/null")))
    return made


def _used(argv: list[str], folder: Path, rng: Random) -> list[Path]:
    """Files that the command may read: those of the samples that it names, or any."""
    words = [word.partition("=")[2] or word for word in argv]
    named = [folder / word for word in words if word in fuzz_commands.PATHS and word and "\0" not in word]
    below = []
    for path in (path for path in named if len(path.name) < 200 and len(str(path)) < 1000):
        if path.is_symlink() or not path.exists() or folder not in path.parents:
            continue
        below += [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    if not below or rng.random() < 0.05:
        below = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink())
    return below


def prepare(work: Path) -> None:
    """Import what commands need, and make the samples in a process of their own."""
    for name, value in {
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg",
        "REVSTEP_CACHE": str(work / "cache"), "HF_HOME": str(work / "cache" / "hf"), "OMP_NUM_THREADS": "1",
        "MPLCONFIGDIR": str(work / "cache" / "mpl"), "COLUMNS": "100", "PYTHONFAULTHANDLER": "",
    }.items():  # fmt: skip
        os.environ[name] = value
    import importlib

    for name in IMPORTED:
        importlib.import_module(name)
    import torch

    from revstep_lab.demo import real

    torch.set_num_threads(1)
    real.find_weights = lambda: (None, "nothing is downloaded here")
    samples = work / "samples"
    samples.mkdir(parents=True, exist_ok=False)
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with (work / "samples.log").open("w") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
                fuzz_samples.make(samples)
                code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(code)
    if os.waitpid(child, 0)[1]:
        raise SystemExit(f"no samples: {(work / 'samples.log').read_text()[-3000:]}")


def attempt(seed: int, number: int, work: Path) -> tuple[Case, fuzz_child.Outcome, list[str]]:
    """Run one case -> it, what came of it, and its faults."""
    place = work / "case"
    folder = place / "in"
    place.mkdir()
    try:
        fuzz_samples.copy(work / "samples", folder)
        made = case(seed, number, folder)
        before = fuzz_rules.snapshot(folder)
        outcome = fuzz_child.run(made.argv, folder, made.limits)
        lost, new = fuzz_rules.differences(before, fuzz_rules.snapshot(folder))
        return made, outcome, fuzz_rules.faults(made.argv, outcome, lost, new)
    finally:
        shutil.rmtree(place)


def fuzz(
    seed: int, seconds: float, commands: int, work: Path, first: int = 0, verbose: bool = False
) -> list[str]:
    """Run cases until the time is over or there were enough; the failures, each as text."""
    prepare(work)
    print(f"fuzz: seed {seed}; again: python tests/fuzz/fuzz.py --seed {seed}", flush=True)
    began, number, failures = time.monotonic(), first, []
    codes: dict[int, int] = {}
    while number - first < commands and time.monotonic() - began < seconds:
        made, outcome, wrong = attempt(seed, number, work)
        codes[outcome.code] = codes.get(outcome.code, 0) + 1
        if verbose:
            print(
                f"case {number}: {made}\n  exit {outcome.code} in {outcome.seconds:.2f}"
                f" s\n{outcome.out}{outcome.err}"
            )
        if wrong:
            said = outcome.err.strip().splitlines()[-12:]
            failures.append(
                "\n".join(
                    [
                        f"case {number} of seed {seed}: {made}",
                        f"  {'; '.join(wrong)}",
                        *(f"  | {s}" for s in said),
                    ]
                )
            )
            print(ascii(failures[-1]).replace("\\n", "\n")[1:-1] + "\n", flush=True)
        number += 1
    took = time.monotonic() - began
    tally = ", ".join(f"{n} x {code}" for code, n in sorted(codes.items()))
    print(
        f"fuzz: {number - first} commands in {took:.0f} s (exit codes: {tally}), {len(failures)} failed;"
        f" seed {seed}"
    )
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--seconds", type=float, default=None, help="default 600 where no --commands are given"
    )
    parser.add_argument("--commands", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--first", type=int, default=0, help="the case to begin with")
    parser.add_argument("--case", type=int, help="this one alone, with what it says")
    args = parser.parse_args()
    seconds = args.seconds or (600 if args.commands == 10**9 else 1e9)
    seed = Random().randrange(10**6) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory(prefix="revstep-fuzz-") as work:
        if args.case is not None:
            return bool(fuzz(seed, 1e9, 1, Path(work), args.case, verbose=True))
        return bool(fuzz(seed, seconds, args.commands, Path(work), args.first))


if __name__ == "__main__":
    sys.exit(main())
