"""revstep-lab stands beside the library: found by the command line where it is installed, named where it is
not.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import revstep
import revstep_lab
from revstep import _cli

ROOT = Path(__file__).resolve().parents[1]
SENTENCE = (
    "revstep: revstep {} is in the package revstep-lab, which is not installed; run: pip install"
    " revstep-lab\n"
)


def run(folder, *arguments):
    """The command line, in a Python that sees the standard library and ``folder`` alone."""
    code = f"import sys; sys.path.append({str(folder)!r}); from revstep._cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture
def library(tmp_path):
    """A folder with the library and not the lab."""
    os.symlink(Path(revstep.__file__).parent, tmp_path / "revstep")
    return tmp_path


def commands(said):
    return set(re.findall(r"^    (\w+)  ", said, re.M))


@pytest.mark.parametrize(
    "line",
    [("bench",), ("bench", "ode", "--rounds", "3"), ("demo", "--help"), ("verify", "--scheme", "blend")],
)
def test_without_the_lab_its_commands_say_what_brings_them(library, line):
    done = run(library, *line)
    assert (done.returncode, done.stdout, done.stderr) == (_cli.REFUSED, "", SENTENCE.format(line[0]))


def test_without_the_lab_the_others_work_and_help_names_all(library):
    done = run(library, "--help")
    assert done.returncode == 0 and commands(done.stdout) >= {"bench", "demo", "verify", "finetune", "plan"}
    assert done.stdout.count("(with the package revstep-lab)") == 3
    assert run(library, "finetune", "--help").returncode == 0


def test_with_the_lab_they_are_its_own(library):
    os.symlink(Path(revstep_lab.__file__).parent, library / "revstep_lab")
    done = run(library, "--help")
    assert (
        done.returncode == 0
        and "revstep-lab" not in done.stdout
        and commands(done.stdout) >= {"bench", "demo", "verify", "finetune", "plan"}
    )
    assert "REVSTEP_DEMO_MINUTES" in run(library, "demo", "--help").stdout


def test_the_names_of_its_commands_are_written_down_once():
    own = {
        name for name, module in _cli.find_commands().items() if module.__name__.startswith("revstep_lab.")
    }
    assert own == set(_cli.LAB_COMMANDS)


def test_the_two_distributions_have_one_version():
    library, lab = (
        path.read_text(encoding="utf-8")
        for path in (ROOT / "pyproject.toml", ROOT / "python" / "pyproject.toml")
    )
    # Both read it in one place (tests/test_version.py), and the lab asks for the library of its own version.
    assert 'dynamic = ["version"' in library and 'dynamic = ["version"' in lab
    assert '"revstep=={project[version]}"' in lab and '"revstep-lab"' in library
    dependencies = re.search(r"^dependencies = \[(.*)\]", library, re.M).group(1)
    assert "scipy" not in dependencies and "revstep-lab" not in dependencies and "scipy" in lab


def test_its_licence_is_that_of_the_library():
    """A wheel takes files from its own folder alone."""
    assert (ROOT / "python" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()
