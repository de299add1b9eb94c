"""Who may know whom: imports of the Python package and includes of the C++ sources run one way. Sizes of
files.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE, LAB, SOURCES = ROOT / "python" / "revstep", ROOT / "python" / "revstep_lab", ROOT / "csrc"
MAX_LINES = 400

#: A part may import itself and parts of a lower rank. Parts of one rank do not know each other.
RANK = {
    "_C": 0,
    "errors": 0,
    "_imports": 1,
    "_fused_step": 1,
    "ops": 1,
    "state": 2,
    "schemes": 3,
    "_files": 1,
    "_locks": 2,
    "_values": 1,
    "_specs": 4,
    "_options": 5,
    "_recurrence": 5,
    "stack": 6,
    "ode": 6,
    "_models": 7,
    "lm": 8,
    "hf": 8,
    "plan": 8,
    "verify": 9,
    "_cli": 10,
}
#: The same inside revstep_lab, which may import all of revstep. Nothing in revstep may import it.
LAB_RANK = {
    "drawing": 0,
    "tables": 0,
    "bench": 1,
    "verify": 1,
    "demo": 2,
    "cases": 3,
    "commands": 4,
    "_gpu_parts": 5,
    "gpu": 5,
}
#: The extension is for ops, and for one file of ode: everything above goes through what these have checked.
#: No part may need verify to work.
PRIVATE = {"_C": {"ops", "ode/_compiled.py"}, "verify": set()}
#: What the front page knows about itself and the uppermost parts may ask it.
VERSION = "revstep.__version__"
#: The package's front page and ``python -m`` may name all parts, and no part may import them.
FRONT = {"__init__", "__main__"}
#: Files that are started (``python -m``), and what they may name as ``__main__`` does.
ENTRY_POINTS = {"lm/__main__.py": {"_cli"}}

CSRC_RANK = {"core": 0, "kernels": 1, "ode": 2, "bindings": 3}
FOREIGN = re.compile(r"^(torch|ATen|c10|nanobind|pybind11)/|^(Python|pybind11|torch)\.h$")
#: Of the standard library, core uses only what nvcc has on the device: no containers, strings, streams,
#: exceptions.
CORE_STANDARD = {
    "cstdint",
    "cstddef",
    "cstring",
    "cmath",
    "climits",
    "cfloat",
    "type_traits",
    "limits",
    "cuda_fp16.h",
    "cuda_bf16.h",
}


def part_of(module: str) -> str:
    """``revstep.ops._kernels`` -> ``ops``; ``revstep`` -> ``__init__``."""
    return [*module.split("."), "__init__"][1]


def imported(path: Path, module: str) -> set[str]:
    """Absolute names of all revstep modules that a file imports, anywhere in it (also inside functions)."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            names |= (
                {f"{source}.{alias.name}" for alias in node.names}
                if source in ("revstep", "revstep_lab")
                else {source}
            )
    return {name for name in names if name.split(".")[0] in ("revstep", "revstep_lab")}


def python_violations(package: Path, root: str = "revstep", rank: dict[str, int] = RANK) -> list[str]:
    """Imports of ``root`` against its order, as sentences; and of revstep_lab, which the library does not
    know.
    """
    found = []
    for path in sorted(package.rglob("*.py")):
        relative = path.relative_to(package)
        module = ".".join([root, *relative.with_suffix("").parts]).removesuffix(".__init__")
        names = sorted(imported(path, module))
        if root != LAB.name:
            found += [
                f"{relative} imports {name}: the library does not know what stands beside it"
                for name in names
                if name.startswith(LAB.name)
            ]
        own = part_of(module)
        if own in FRONT:
            continue
        if own not in rank:
            found.append(f"{relative}: part {own!r} has no rank: give it one in RANK")
            continue
        for name in (name for name in names if name.split(".")[0] == root):
            target = part_of(name)
            if (
                target == own
                or target in ENTRY_POINTS.get(relative.as_posix(), ())
                or (name == VERSION and rank[own] >= rank["lm"])
            ):
                continue
            if target not in rank:
                found.append(f"{relative} imports {name}: the front page or an unknown part")
            elif rank[target] >= rank[own]:
                found.append(f"{relative} imports {name}: {own} stands below {target}")
            elif root == "revstep" and not {own, relative.as_posix()} & PRIVATE.get(target, {own}):
                found.append(
                    f"{relative} imports {name}: only {', '.join(sorted(PRIVATE[target])) or LAB.name} may"
                )
    return found


def lab_violations(package: Path) -> list[str]:
    """The same inside revstep_lab, which may import all of revstep."""
    return python_violations(package, LAB.name, LAB_RANK)


def include_violations(sources: Path) -> list[str]:
    """``#include`` lines against the order core < kernels < ode < bindings, and foreign headers in the first
    two.
    """
    found = []
    for path in sorted(p for p in sources.rglob("*") if p.suffix in (".hpp", ".cpp", ".cu", ".cuh", ".h")):
        relative = path.relative_to(sources)
        own = relative.parts[0]
        if own not in CSRC_RANK:
            found.append(f"{relative}: {own!r} has no rank: give it one in CSRC_RANK")
            continue
        for quote, header in re.findall(
            r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)', path.read_text(encoding="utf-8"), re.M
        ):
            ours = next((root for root in ((path.parent / header), sources / header) if root.is_file()), None)
            if ours is not None:
                target = ours.resolve().relative_to(sources.resolve()).parts[0]
                if CSRC_RANK.get(target, 9) > CSRC_RANK[own]:
                    found.append(f"{relative} includes {header}: {own} stands below {target}")
            elif quote == '"':
                found.append(f"{relative} includes {header}, which is not there")
            elif own != "bindings" and FOREIGN.search(header):
                found.append(f"{relative} includes {header}: {own} knows neither Python nor torch")
            elif own == "core" and header not in CORE_STANDARD:
                found.append(f"{relative} includes <{header}>: core has to compile for the device")
    return found


def long_files(*roots: Path) -> list[str]:
    files = (
        p
        for root in roots
        for p in sorted(root.rglob("*"))
        if p.suffix in (".py", ".hpp", ".cpp", ".cu", ".cuh", ".h")
    )
    sizes = ((p, len(p.read_text(encoding="utf-8").splitlines())) for p in files)
    return [f"{p}: {n} lines, at most {MAX_LINES}" for p, n in sizes if n > MAX_LINES]


def test_imports_run_one_way():
    assert list(PACKAGE.rglob("*.py")) and python_violations(PACKAGE) == []
    assert list(LAB.rglob("*.py")) and lab_violations(LAB) == []


def test_includes_run_one_way():
    assert list(SOURCES.rglob("*.hpp")) and include_violations(SOURCES) == []


def test_no_file_is_too_long():
    assert long_files(PACKAGE, LAB, SOURCES, ROOT / "tests") == []


# ---- the same functions reject trees that break the rules ----

WRONG_IMPORTS = {
    "upwards": ("ops/x.py", "from ..state import FixedPoint", "ops stands below state"),
    "upwards, inside a function": (
        "ops/x.py",
        "def f():\n    from .. import stack",
        "ops stands below stack",
    ),
    "the stack from the integrator": (
        "ode/x.py",
        "from ..stack.arguments import increment",
        "ode stands below stack",
    ),
    "absolute": ("schemes/x.py", "import revstep.stack._tape", "schemes stands below stack"),
    "siblings": ("lm/x.py", "from ..plan import plan", "lm stands below plan"),
    "the command line, not from an entry point": (
        "lm/_trainer.py",
        "from .._cli import main",
        "lm stands below _cli",
    ),
    "more than an entry point may": ("lm/__main__.py", "from ..hf import convert", "lm stands below hf"),
    "verify from below": ("stack/x.py", "from .. import verify", "stack stands below verify"),
    "verify from above": ("_cli/x.py", "from .. import verify", "only revstep_lab may"),
    "the lab": ("stack/x.py", "from revstep_lab import bench", "does not know what stands beside it"),
    "the lab, from the command line": (
        "_cli/x.py",
        "def f():\n    import revstep_lab.commands",
        "does not know what stands beside it",
    ),
    "the lab, from the front page": (
        "__init__.py",
        "import revstep_lab",
        "does not know what stands beside it",
    ),
    "extension": ("stack/x.py", "from .. import _C", "only ode/_compiled.py, ops may"),
    "extension, deeper": ("stack/deep/x.py", "from ... import _C", "only ode/_compiled.py, ops may"),
    "extension, the wrong file of ode": (
        "ode/_loop.py",
        "from .. import _C",
        "only ode/_compiled.py, ops may",
    ),
    "extension, the file's name elsewhere": (
        "stack/compiled.py",
        "from .. import _C",
        "only ode/_compiled.py, ops may",
    ),
    "front page": ("ops/x.py", "from revstep import FixedPoint", "the front page or an unknown part"),
    "front page by name": ("ops/x.py", "import revstep", "the front page or an unknown part"),
    "unknown part": ("magic/__init__.py", "", "has no rank"),
    "errors know nobody": ("errors.py", "from . import ops", "errors stands below ops"),
}


WRONG_LAB_IMPORTS = {
    "upwards": ("bench/x.py", "from ..demo import run", "bench stands below demo"),
    "the commands": ("demo/x.py", "from revstep_lab.commands import demo", "demo stands below commands"),
    "siblings": ("verify/x.py", "def f():\n    from ..bench import runner", "verify stands below bench"),
    "unknown part": ("magic.py", "", "has no rank"),
}


@pytest.mark.parametrize("file, text, message", WRONG_IMPORTS.values(), ids=WRONG_IMPORTS)
def test_a_wrong_import_is_rejected(tmp_path, file, text, message, violations=python_violations):
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    (found,) = violations(tmp_path)
    assert message in found and file in found.replace("\\", "/")


@pytest.mark.parametrize("file, text, message", WRONG_LAB_IMPORTS.values(), ids=WRONG_LAB_IMPORTS)
def test_a_wrong_import_of_the_lab_is_rejected(tmp_path, file, text, message):
    test_a_wrong_import_is_rejected(tmp_path, file, text, message, lab_violations)


def test_right_imports_are_accepted(tmp_path):
    for file, text in {
        "ops/x.py": (
            "import torch\nfrom .. import _C\nfrom ..errors import ConfigError\nfrom . import kernels"
        ),
        "schemes/x.py": "from ..state import FixedPoint\nfrom .base import Scheme",
        "ode/_compiled.py": "from .. import _C",
        "lm/__main__.py": "from .._cli import main",
        "_cli/x.py": "from ..plan import plan\nfrom ..lm import GPT",
        "verify/x.py": "from ..stack import ReversibleStack",
        "__init__.py": "from . import ops, _cli",
    }.items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    assert python_violations(tmp_path) == []


def test_the_lab_may_import_all_of_the_library(tmp_path):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "x.py").write_text(
        "import revstep\nfrom revstep._cli import shared\nfrom revstep.stack._arguments import"
        " increment\nfrom .. import tables\n"
    )
    assert lab_violations(tmp_path) == []


WRONG_INCLUDES = {
    "kernels in core": ("core/x.hpp", '#include "../kernels/step.hpp"', "core stands below kernels"),
    "from the root": ("core/x.hpp", '#include "kernels/step.hpp"', "core stands below kernels"),
    "bindings in kernels": (
        "kernels/x.cu",
        '#  include "../bindings/m.hpp"',
        "kernels stands below bindings",
    ),
    "ode in kernels": ("kernels/x.cpp", '#include "../ode/loop.hpp"', "kernels stands below ode"),
    "torch": ("kernels/x.cpp", "#include <torch/extension.h>", "neither Python nor torch"),
    "Python": ("core/x.hpp", "#include <Python.h>", "neither Python nor torch"),
    "nanobind": ("kernels/x.cpp", "#include <nanobind/nanobind.h>", "neither Python nor torch"),
    "containers": ("core/x.hpp", "#include <vector>", "has to compile for the device"),
    "missing": ("kernels/x.cpp", '#include "gone.hpp"', "which is not there"),
    "unknown folder": ("extra/x.cpp", "", "has no rank"),
}


@pytest.mark.parametrize("file, text, message", WRONG_INCLUDES.values(), ids=WRONG_INCLUDES)
def test_a_wrong_include_is_rejected(tmp_path, file, text, message):
    for path, content in {
        "kernels/step.hpp": "#include <cstdint>\n",
        "bindings/m.hpp": '#include "../kernels/step.hpp"\n',
        "ode/loop.hpp": "",
        file: text,
    }.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content)
    (found,) = include_violations(tmp_path)
    assert message in found


def test_a_long_file_is_rejected(tmp_path):
    (tmp_path / "x.py").write_text("pass\n" * 400)
    assert long_files(tmp_path) == []
    (tmp_path / "x.py").write_text("pass\n" * 401)
    assert len(long_files(tmp_path)) == 1
