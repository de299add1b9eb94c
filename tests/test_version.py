"""The version has one place, ``__version__`` of ``python/revstep/__init__.py``: what is built reads it, what
is written by hand is compared.
"""

import re
import sys
from importlib import metadata
from pathlib import Path

import pytest

import revstep
from revstep import _C

ROOT = Path(__file__).resolve().parents[1]
#: Where a version is written, and may not be another one.
PLACES = {
    "README.md": r"^  version = \{(.+)\}$",
    "CITATION.cff": r"^version: (\S+)$",
    "CHANGELOG.md": r"^## \[?(\d[^ \]]*)",
}
#: Where it would be a second place.
NOT_HERE = {"pyproject.toml": r"^version *=", "python/pyproject.toml": r"^version *=|revstep==\d"}


def written(name, pattern, text=None):
    return re.findall(pattern, (ROOT / name).read_text(encoding="utf-8") if text is None else text, re.M)


@pytest.mark.parametrize("name", PLACES)
def test_what_is_written_is_the_version(name):
    assert written(name, PLACES[name])[0] == revstep.__version__


@pytest.mark.parametrize("name", NOT_HERE)
def test_there_is_no_second_place(name):
    assert written(name, NOT_HERE[name]) == []


def test_those_patterns_would_see_one():
    assert written("", PLACES["README.md"], "a\n  version = {9.9}\n") == ["9.9"]
    assert written("", PLACES["CHANGELOG.md"], "# C\n\n## Unreleased\n\n## [9.9] - 2027-01-01\n") == ["9.9"]
    assert written("", PLACES["CITATION.cff"], "cff-version: 1.2.0\nversion: 9.9\n") == ["9.9"]
    assert written("", NOT_HERE["python/pyproject.toml"], 'version = "9"\na = ["revstep==9.9"]\n')


def test_both_ends_of_the_supported_torch_are_released_with():
    """The lower end that pip is told, the ends of docs/stability.md, and those of the release workflow."""
    (lower,) = written("pyproject.toml", r"\"torch>=([\d.]+)\"")
    assert written("docs/stability.md", r"^\| torch \| (\S+) \| (\S+) \|$") == [(lower, "2.14")]
    tested = written(".github/workflows/release.yml", r"torch: \"(\d+\.\d+)\.\d+\"")
    assert tested == [lower, "2.14"]


ACTION = r"uses: *(\S+)@[0-9a-f]{40}  # v\d+\.\d+\.\d+$"


def test_a_release_runs_actions_that_nobody_can_move():
    """Each is named by its commit, as a tag may point elsewhere tomorrow; the version is for the reader."""
    name = ".github/workflows/release.yml"
    assert written(name, ACTION) == written(name, r"uses: *([^\s@]+)") != []
    assert not written("", ACTION, "- uses: actions/checkout@v6.0.1  # v6.0.1\n")


def test_what_is_built_has_it():
    assert _C.__version__ == revstep.__version__


@pytest.mark.parametrize("name", ["revstep", "revstep-lab"])
def test_what_is_installed_has_it(name):
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed: this is a checkout on sys.path")
    assert found.version == revstep.__version__
    if name == "revstep-lab":
        assert f"revstep=={revstep.__version__}" in found.requires
    if Path(revstep.__file__).is_relative_to(sys.prefix):
        assert {f"{name.replace('-', '_')}/py.typed"} <= {str(file) for file in found.files}
