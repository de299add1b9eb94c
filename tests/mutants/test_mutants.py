"""One thing broken in the kernels at a time: the property checks, and ``revstep verify``, must notice.

The sources are copied and built once for the CPU, at one instruction set level;
each mutant is then one textual change, an incremental build, and the checks in a process of their own.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("on_copy.py")
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Mutation:
    """``old`` (a regular expression that must match) becomes ``new`` in ``file``; ``checks`` must each go
    red.
    """

    file: str
    old: str
    new: str
    checks: tuple[str, ...]


FIXED, PORTABLE, STEP, FUSED = (
    "csrc/core/fixed.hpp",
    "csrc/core/portable.hpp",
    "csrc/kernels/cpu_body.cpp",
    "csrc/kernels/cpu_fused.hpp",
)
ROWS, SCALE = "csrc/kernels/cpu_rows.hpp", "csrc/kernels/cpu_scale.hpp"
SAMPLE, LOOK, LOOPS = "csrc/core/sample.hpp", "csrc/kernels/look.cpp", "csrc/kernels/look_body.cpp"
LANES, PACKS, SINE = "csrc/ode/tile_lanes.hpp", "csrc/ode/lanes.hpp", "csrc/ode/math.hpp"
RUN, STRIDED, CHANGES = "fingerprint of a run", "fingerprint of any strides", "fingerprint sees changes"
MUTATIONS = {
    "inverse adds the increment": Mutation(
        FIXED,
        r"(y = static_cast<\w+>\(next\)) - (static_cast<\w+>\(d\))",
        r"\1 + \2",
        ("round trip", "agreement fixed"),
    ),
    "truncation instead of rounding": Mutation(
        FIXED, r"kCoefHalf = kCoefOne / 2;", "kCoefHalf = 0;", ("oracle", "agreement fixed")
    ),
    "increments truncated": Mutation(
        PORTABLE, r"return __builtin_irintf\(x\);", "return static_cast<int32_t>(x);", ("oracle",)
    ),
    "a fraction below a whole number taken from above": Mutation(
        FIXED,
        r"make_shift\(below \? rest - one : rest\)",
        "make_shift(below ? one - rest : rest)",
        ("oracle", "agreement fixed"),
    ),
    "carry dropped": Mutation(
        STEP, r"carry_of<KA[^>]*>\(prev\[j\], k\)", r"0u * \g<0>", ("round trip", "oracle")
    ),
    "checksum without the index": Mutation(
        "csrc/core/checksum.hpp", r"return a;", "return (a & 0u) | 1u;", ("checksum",)
    ),
    "limit not checked": Mutation(
        FIXED,
        r"e\.bad = m > static_cast<uint128>\(FixedTraits<S>::limit\);",
        "e.bad = false;",
        ("range", "oracle"),
    ),
    "no look at elements near the limit": Mutation(
        FIXED, r"return !\(abs_of\(next_roughly.*", "return false;", ("range",)
    ),
    "no look at elements near the limit in a tile": Mutation(
        FUSED, r"\|\| !\(float_of\(rough\) < .*;", ";", ("range",)
    ),
    "sums that wrap in a tile": Mutation(FUSED, r"near \|\| wrap >> 31 != 0", "near", ("range",)),
    "contraction on": Mutation(
        "CMakeLists.txt", r"-ffp-contract=off", "-ffp-contract=fast", ("agreement float",)
    ),
    "float inverse adds the increment": Mutation(
        "csrc/core/floating.hpp", r"t = t - k\.gamma \* f;", "t = t + k.gamma * f;", ("agreement float",)
    ),
    "choice ignored in inverse": Mutation(
        ROWS,
        r"plan\.set\[second \? 1 : 0\]",
        "plan.set[second && !plan.inverse ? 1 : 0]",
        ("rows round trip", "rows agreement"),
    ),
    "rows end one element late": Mutation(
        ROWS,
        r"\(\+\+row\) \* s\.row_length - at",
        r"\g<0> + 1",
        ("rows agreement", "rows oracle", "scale rows"),
    ),
    "the first set decides near the limit": Mutation(
        STEP, r"(exact_tile<[^>]*>\(plan, )set,", r"\1plan.set[0],", ("rows range", "rows agreement")
    ),
    "a product rounded once on its way to another dtype": Mutation(
        SCALE, r"Value<V>::widen\(Value<V>::narrow\(product\)\)", "product", ("scale",)
    ),
    "zero times infinity": Mutation(
        SCALE, r"factors\[k\] == 0\.0", "factors[k] != factors[k]", ("scale", "scale rows")
    ),
    "products of the first set for all": Mutation(
        SCALE, r"second \? s\.factor1 : s\.factor", "second ? s.factor : s.factor", ("scale rows",)
    ),
    "lines beyond the end": Mutation(
        SAMPLE, r"rest < s\.every \? rest : s\.every", "s.every", (RUN, STRIDED, CHANGES)
    ),
    "the same lines under every seed": Mutation(
        SAMPLE, r"static_cast<uint32_t>\(j\) \+ s\.seed", "static_cast<uint32_t>(j)", (RUN, STRIDED, CHANGES)
    ),
    "a unit found by its index alone": Mutation(
        SAMPLE, r"at \+= i % s\.size\[d\] \* s\.stride\[d\];", "at += i % s.size[d];", (STRIDED,)
    ),
    "the end of a run left out": Mutation(
        LOOPS, r"unit_sum<Word, S>\(x \+ i, i, s\.n - i\)", "uint64_t{0}", (RUN, CHANGES)
    ),
    "every unit weighed alike": Mutation(
        LOOPS, r"kChecksumTable\.inner \+ i % kChecksumPeriod", "kChecksumTable.inner", (RUN, STRIDED)
    ),
    "elements side by side read instead": Mutation(LOOPS, r"x\[k \* step\]", "x[k]", (STRIDED,)),
    "a row that does not begin anew": Mutation(LOOPS, r"at_ \+= s_\.stride\[d - 1\];", "", (STRIDED,)),
    "dimensions that repeat counted": Mutation(
        LOOK, r"size\[d\] == 1 \|\| stride\[d\] == 0", "size[d] == 1", (STRIDED,)
    ),
    "dimensions as they are given": Mutation(
        LOOK, r"return stride\[a\] > stride\[b\];", "return stride[a] < stride[b] && false;", (STRIDED,)
    ),
    "rows with gaps joined": Mutation(
        LOOK, r"s\.stride\[s\.dims - 1\] == size\[d\] \* stride\[d\]", "true", (STRIDED,)
    ),
    "half of a wide element": Mutation(LOOK, r"step \*= 2;", ";", (STRIDED,)),
    "each stretch compared with the first": Mutation(
        LOOK, r"s\.view\) \+ at \* width", "s.view)", ("view differs",)
    ),
    "the last stretch left out": Mutation(
        LOOK, r"\(s\.n \+ kChunk - 1\) / kChunk", "s.n / kChunk", ("view differs",)
    ),
    "differences noted, not counted": Mutation(
        LOOK, r"found \+= std::memcmp\(a \+ i", "found |= std::memcmp(a + i", ("view differs",)
    ),
    "lanes add the increment on the way back": Mutation(
        LANES, r"y = Undo \? x - d : x \+ d;", "y = x + d;", ("lanes", "lanes range")
    ),
    "large increments of lanes rounded as small ones": Mutation(
        LANES, r"return \(\(any_of\(near\) >> 52\) .*;", "return true;", ("lanes range",)
    ),
    "the other polynomial's coefficients in lanes": Mutation(
        PACKS, r"a - Reals\{\}, b - Reals\{\}", "b - Reals{}, a - Reals{}", ("lanes sine",)
    ),
    "an angle reduced with one part of pi/2 fewer": Mutation(
        SINE, r"n \* 0x1\.3198a2ep-69", "n * 0.0", ("lanes sine",)
    ),
}


def _has_fma() -> bool:
    try:
        return "fma" in Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False


def tool(*names: str) -> str | None:
    """The first of these programs: beside the running Python (``pip install cmake ninja``), else on PATH."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return next(filter(None, (shutil.which(name, path=path) for name in names if name)), None)


class Copy:
    """A private source tree with its build; ``with copy.mutated(...)`` breaks it for a while."""

    def __init__(self, folder: Path):
        self.folder, self.build, self.package = folder, folder / "build", folder / "python"
        for name in ("csrc", "python"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
        cmake = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
        # Contraction needs fused multiply-add.
        level = "revstep_level(generic -march=x86-64-v3)" if _has_fma() else "revstep_level(generic)"
        for old, new in (
            ("^(x86_64|AMD64|amd64)$", "^(one level is enough)$"),
            ("revstep_level(generic)", level),
            ("-O3", "-O2"),
        ):
            assert old in cmake, f"CMakeLists.txt has no {old!r} any more: adapt this test"
            cmake = cmake.replace(old, new)
        (folder / "CMakeLists.txt").write_text(cmake, encoding="utf-8")
        generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"] if tool("ninja") else []
        options = [
            "-DSKBUILD=ON",
            "-DREVSTEP_CUDA=OFF",
            "-DCMAKE_BUILD_TYPE=None",
            f"-DPython_EXECUTABLE={sys.executable}",
        ]
        self.run([tool("cmake"), "-S", str(folder), "-B", str(self.build), *generator, *options])
        self.make()

    @staticmethod
    def run(command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-3000:]}\n{done.stderr[-2000:]}"

    def make(self) -> None:
        self.run([tool("cmake"), "--build", str(self.build), "--parallel", "2"])
        (extension,) = self.build.glob("_C*.so")
        shutil.copy2(extension, self.package / "revstep" / extension.name)

    def mutate(self, mutation: Mutation) -> str:
        path = self.folder / mutation.file
        original = path.read_text(encoding="utf-8")
        changed, count = re.subn(mutation.old, mutation.new, original)
        assert count and changed != original, (
            f"{mutation.file} has nothing like {mutation.old!r} any more: adapt the mutation"
        )
        path.write_text(changed, encoding="utf-8")
        return original

    def python(self, *arguments: str) -> subprocess.CompletedProcess:
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, str(RUNNER), str(self.package), *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=300,
        )

    def failures(self, *checks: str) -> dict[str, str]:
        done = self.python("checks", *checks)
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads(done.stdout)


def _missing() -> str:
    if not (ROOT / "csrc").is_dir():
        return "there is no csrc beside the tests"
    if not tool("cmake") or not tool(os.environ.get("CXX", ""), "c++", "g++", "clang++"):
        return "cmake or a C++ compiler is not installed"
    version = re.search(
        r"(\d+)\.(\d+)", subprocess.run([tool("cmake"), "--version"], capture_output=True, text=True).stdout
    )
    if tuple(map(int, version.groups())) < (3, 26):
        return f"cmake is {version[0]}, 3.26 is needed"
    if subprocess.run([sys.executable, "-m", "nanobind", "--version"], capture_output=True).returncode:
        return "nanobind is not installed"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python's headers are not installed"
    return ""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Copy:
    reason = _missing()
    if reason:
        pytest.skip(f"the mutants need a build: {reason}")
    return Copy(tmp_path_factory.mktemp("mutants"))


@pytest.fixture
def mutated(copy):
    """A function that applies a mutation and builds; undone afterwards (the next mutant's build picks that
    up).
    """
    undo = []

    def apply(mutation: Mutation) -> Copy:
        undo.append((copy.folder / mutation.file, copy.mutate(mutation)))
        copy.make()
        return copy

    yield apply
    for path, original in undo:
        path.write_text(original, encoding="utf-8")


def test_the_unbroken_copy_passes_every_check(copy):
    assert copy.failures() == {}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutant_is_rejected(name, mutated):
    mutation = MUTATIONS[name]
    if name == "contraction on" and not _has_fma():
        pytest.skip("this CPU has no fused multiply-add to contract to")
    assert set(mutated(mutation).failures(*mutation.checks)) == set(mutation.checks)


VERIFY = ("verify", "--scheme", "midpoint", "--scheme", "blend", "--state", "fixed32", "--dtype", "float32")


def test_verify_accepts_the_unbroken_copy(copy):
    done = copy.python(*VERIFY)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout and "FAILS" not in done.stdout


@pytest.mark.parametrize(
    "name, claim",
    [
        ("inverse adds the increment", "one step undone bit for bit"),
        ("carry dropped", "one step undone bit for bit"),
        ("limit not checked", "a value out of range is flagged"),
    ],
)
def test_verify_names_the_claim_that_a_mutant_breaks(name, claim, mutated):
    done = mutated(MUTATIONS[name]).python(*VERIFY)
    assert done.returncode == 1, done.stdout + done.stderr
    assert any(line.startswith("FAILED") and claim in line for line in done.stdout.splitlines()), done.stdout
