"""Full disks, real ones: runs into a file system of a few kilobytes in memory, of more and more, so that
every write of a run is once the one that fails. Then the disk grows, and the run is gone on with. By hand
and as root, since it mounts:

    python tests/fuzz/full_disks.py
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import fuzz_child
from fuzz_samples import TRAIN, TUNE

import fuzz

SIZES = (4, 8, 16, 24, 32, 44, 56, 72, 88, 104, 120, 160, 200, 260, 320, 400)  # kB


def commands(disk: Path) -> dict[str, list[str]]:
    """What is run, by name; those that can go on take ``--resume auto``."""
    convert = "--calibration text --tokens 64 --scheme blend:c=0.25".split()
    return {
        "finetune": [*TUNE, "--save-every", "1", "--out", f"{disk}/out", "--deploy", f"{disk}/plain"],
        "train": [*TRAIN, "--save-every", "1", "--out", f"{disk}/out"],
        "convert": ["convert", "model", f"{disk}/out", *convert],
        "plan": ["plan", "smollm2-135m", "--seq", "64", "--json", f"{disk}/p.json"],
    }


def attempt(argv: list[str], size: int, disk: Path, samples: Path) -> tuple[bool, str]:
    """One run on a disk of ``size`` kB -> whether it went as it must, and what it said."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=True)
    try:
        limits = fuzz_child.Limits(patience=120)
        outcome = fuzz_child.run(argv, samples, limits)
        good = outcome.code in (0, 2) and not outcome.hung and "Traceback" not in outcome.err
        said = (outcome.err.strip().splitlines() or [""])[-1]
        if outcome.code == 2 and argv[0] in ("train", "finetune"):
            subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True)
            again = fuzz_child.run([*argv, "--resume", "auto"], samples, limits)
            good, said = good and again.code == 0, f"{said}; with room: exit {again.code}"
        elif outcome.code == 2:
            good = good and not any(path.is_file() for path in disk.rglob("*"))
        return good, said
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory(prefix="revstep-disks-") as name:
        work = Path(name)
        disk = work / "disk"
        disk.mkdir()
        fuzz.prepare(work / "fuzz")
        for command, argv in commands(disk).items():
            for size in SIZES:
                good, said = attempt(argv, size, disk, work / "fuzz" / "samples")
                failed += not good
                print("ok    " if good else "FAILED", command, f"{size} kB:", said, flush=True)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
