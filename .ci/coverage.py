"""Which lines of python and csrc no test runs.

    python .ci/coverage.py FOLDER [TESTS ...]    measure, from a copy of the tree, and list
    python .ci/coverage.py FOLDER --list         list again what was measured

In an environment with the test extra, coverage, nanobind, scikit-build-core, cmake and ninja. The extension
is built with little optimisation and with gcov's counters, so that one run of pytest (everything but the
mutants, where no TESTS are given) and one of the C++ tests measure both languages. A line of a template
counts as run where any instance of it was. FOLDER/coverage.json holds the totals, and the lines of every
file.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: Children of tests are forked and end by os._exit, which leaves no counters behind unless it is patched.
SETTINGS = """[run]
source = revstep,revstep_lab
parallel = true
data_file = {folder}/data/python
patch = subprocess, fork, _exit
concurrency = thread,multiprocessing
[report]
exclude_also =
    if TYPE_CHECKING:
    @abstractmethod
    \\.\\.\\.$
"""


def run(command: list[str | Path], **options: object) -> int:
    print("$", *command, flush=True)
    return subprocess.run([str(word) for word in command], **options).returncode


def build(folder: Path, tree: Path) -> None:
    """The extension and the C++ tests, with counters."""
    counters = "-DCMAKE_CXX_FLAGS=-O1 --coverage"
    common = ["-G", "Ninja", "-DCMAKE_BUILD_TYPE=None", counters, "-DREVSTEP_CUDA=OFF"]
    python = ["-DSKBUILD=2", "-DSKBUILD_PROJECT_NAME=revstep", f"-DPython_EXECUTABLE={sys.executable}"]
    for name, options, target in (("extension", python, "_C"), ("cpp", ["-DREVSTEP_TESTS=ON"], "all")):
        if run(["cmake", "-S", tree, "-B", folder / name, *common, *options]) or run(
            ["cmake", "--build", folder / name, "--target", target]
        ):
            sys.exit(f"{name} was not built")
    (extension,) = (folder / "extension").glob("_C*.so")
    shutil.copy(extension, tree / "python" / "revstep")


def measure(folder: Path, tests: list[str]) -> None:
    tree = folder / "tree"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, check=True
    )
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    (folder / "settings").write_text(SETTINGS.format(folder=folder), encoding="utf-8")
    build(folder, tree)
    environment = {**os.environ, "PYTHONPATH": str(tree / "python"), "OMP_NUM_THREADS": "1"}
    coverage = [sys.executable, "-m", "coverage", "run", f"--rcfile={folder / 'settings'}", "-m", "pytest"]
    run(
        [*coverage, "-q", "-n", "auto", *(tests or ["tests", "--ignore=tests/mutants"])],
        cwd=tree,
        env=environment,
    )
    if not tests:
        run(["ctest", "--test-dir", folder / "cpp"])


def python_lines(folder: Path) -> dict[str, tuple[int, list[int]]]:
    """Of every file, how many lines can run, and those that did not."""
    settings = f"--rcfile={folder / 'settings'}"
    run([sys.executable, "-m", "coverage", "combine", settings, "--keep", "-q"], cwd=folder / "tree")
    report = folder / "python.json"
    run([sys.executable, "-m", "coverage", "json", settings, "-q", "-o", report], cwd=folder / "tree")
    files = json.loads(report.read_text(encoding="utf-8"))["files"]
    return {
        name: (found["summary"]["num_statements"], found["missing_lines"])
        for name, found in files.items()
    }  # fmt: skip


def cpp_lines(folder: Path) -> dict[str, tuple[int, list[int]]]:
    source = folder / "tree" / "csrc"
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for data in folder.rglob("*.gcda"):
        told = subprocess.run(
            ["gcov", "--json-format", "--stdout", data], capture_output=True, check=True
        ).stdout
        text = gzip.decompress(told) if told[:2] == b"\x1f\x8b" else told
        for document in filter(None, text.splitlines()):
            for file in json.loads(document)["files"]:
                path = Path(file["file"])
                if not path.is_relative_to(source):
                    continue
                for line in file["lines"]:
                    counts[str(path.relative_to(source.parent))][line["line_number"]] += line["count"]
    return {name: (len(c), sorted(n for n, count in c.items() if not count)) for name, c in counts.items()}


def ranges(lines: list[int]) -> str:
    runs: list[list[int]] = []
    for n in lines:
        if runs and n == runs[-1][1] + 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def report(folder: Path) -> None:
    found = {"python": python_lines(folder), "csrc": cpp_lines(folder)}
    (folder / "coverage.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for part, files in found.items():
        lines = sum(count for count, _ in files.values())
        missed = sum(len(missing) for _, missing in files.values())
        share = 100 * missed / max(lines, 1)
        print(f"\n{part}: {lines - missed} of {lines} lines run, {missed} do not ({share:.1f} %)")
        for name, (_, missing) in sorted(files.items()):
            if missing:
                print(f"  {name}: {ranges(missing)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args()
    folder = options.folder.absolute()
    if not options.list:
        folder.mkdir(parents=True, exist_ok=False)
        measure(folder, options.tests)
    report(folder)


if __name__ == "__main__":
    main()
