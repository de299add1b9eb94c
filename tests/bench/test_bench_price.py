"""``revstep bench price``: the checks on and off, and this build beside another one."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import revstep
import revstep_lab
from revstep import _cli
from revstep.errors import ConfigError
from revstep_lab.bench import runner
from revstep_lab.cases import _builds as builds
from revstep_lab.cases import price
from revstep_lab.cases.ode import OdeCase
from revstep_lab.cases.trunk import TrunkCase

CASE = TrunkCase(layers=2, width=16, heads=2, batch=1, length=8)
TINY = "--layers 2 --width 16 --heads 2 --batch 1 --length 8 --rounds 2".split()

#: Added to the other build: nine steps instead of one, and an error in the fifth.
SLOW = """
_step = one_step
def one_step(case, trunk, x):
    step = _step(case, trunk, x)
    return lambda: [step() for _ in range(9)]
"""
LATE = """
_step, count = one_step, [0]
def one_step(case, trunk, x):
    def step():
        count[0] += 1
        assert count[0] < 5, "tired"
        _step(case, trunk, x)()
    return step
"""


def run(tmp_path, capsys, *arguments):
    path = tmp_path / "out.json"
    assert _cli.main(["bench", "price", *TINY, *arguments, "--json", str(path)]) == 0
    return capsys.readouterr().out, json.loads(path.read_text())


# ---- the price of the checks ----


def test_checks_beside_each_other(tmp_path, capsys):
    said, data = run(tmp_path, capsys, "--parts", "checks", "--dtype", "bfloat16")
    part = data["checks"]
    names = ["checks=False", "checks=True", 'checks="all"']
    assert [m["name"] for m in part["measurements"]] == names == list(price.CHECKS)
    assert data["measurements"] == data["goals"] == [] and "against" not in data
    assert part["scheme"] == "midpoint"
    (goal,) = part["goals"]  # what "all" takes has none
    assert goal["what"] == "checks=True / checks=False, bfloat16" and goal["goal"] == price.OF_CHECKS == 1.01
    assert goal["value"] == part["measurements"][1]["ratios"]["checks=False"] and goal["what"] in said
    assert all(m["name"] in said and {"p20", "p50", "p80"} <= m.keys() for m in part["measurements"])
    assert "/ the scheme's other state" not in said and "/ checks=False" in said


def test_both_parts_by_default_and_the_first_scheme_is_that_of_the_checks(tmp_path, capsys):
    said, data = run(tmp_path, capsys, "--schemes", "blend", "leapfrog", "--csv", str(tmp_path / "out.csv"))
    assert len(data["measurements"]) == 4 and data["checks"]["scheme"] == "blend" and "scheme blend" in said
    lines = (tmp_path / "out.csv").read_text()
    assert "checks/measurements" in lines and "checks=True" in lines
    result = price.run_price(TrunkCase(**{**CASE.__dict__, "scheme": "leapfrog"}), 1, parts=("checks",))
    assert result["checks"]["scheme"] == "leapfrog"


def test_each_row_is_a_step_with_these_checks_on_the_same_blocks(monkeypatch):
    """A stack that ignores ``checks`` would have the same price with and without."""
    made = []
    real = price.ReversibleStack

    def spy(blocks, scheme, **options):
        made.append(real(blocks, scheme, **options))
        return made[-1]

    monkeypatch.setattr(price, "ReversibleStack", spy)
    called = []

    def fake(steps, rounds, **_):
        for name, step in steps.items():
            step()
            called.append(name)
        return [runner.Measurement(n, 1.0, 1.0, 1.0, {o: 1.02 for o in steps if o != n}) for n in steps]

    monkeypatch.setattr(price, "measure", fake)
    result = price._checks(CASE, 3)
    assert called == list(price.CHECKS) and [stack.checks for stack in made] == [False, True, "all"]
    first = [id(p) for p in made[0].parameters()]
    assert first and all([id(p) for p in stack.parameters()] == first for stack in made)
    assert [g["met"] for g in result["goals"]] == [False]  # two per cent are too many
    monkeypatch.setattr(price, "OF_CHECKS", 1.03)
    assert price._checks(CASE, 3)["goals"][0]["met"]


@pytest.mark.parametrize("parts", [(), ("state",), ("states", "all")])
def test_unknown_parts_are_refused(parts):
    with pytest.raises(ConfigError, match="expected some of states, checks"):
        price.run_price(CASE, 1, parts=parts)


# ---- beside another build ----


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A function of a line to add to a copy's trunk.py: the interpreter of an environment with that copy."""
    folder = tmp_path_factory.mktemp("other")
    ignore = shutil.ignore_patterns("__pycache__")
    for package in (revstep, revstep_lab):
        shutil.copytree(Path(package.__file__).parent, folder / package.__name__, ignore=ignore)
    python, trunk = folder / "python", folder / "revstep_lab" / "cases" / "trunk.py"
    original = trunk.read_text()

    def make(line: str = "") -> str:
        trunk.write_text(original + line)
        start = f'{sys.executable} -S -c "$(cat {folder}/start)" "$@"'
        python.write_text(f'#!/bin/sh\n[ -z "$PYTHONPATH" ] || exit 9\nPYTHONPATH={folder} exec {start}\n')
        return str(python)

    found = [str(folder), *filter(None, sys.path)]  # the copy before the package, which may lie beside torch
    (folder / "start").write_text(f"import sys; sys.path[1:] = {found!r}; exec(sys.argv.pop(2))\n")
    python.touch()
    python.chmod(0o755)
    return make


def test_a_build_with_its_benchmark_inside(tmp_path, other):
    """As 0.1.0 had it, before revstep-lab."""
    python = other()
    copy = tmp_path / "old"
    shutil.copytree(Path(python).parent, copy)
    shutil.move(copy / "revstep_lab" / "bench", copy / "revstep" / "bench")
    trunk = (copy / "revstep_lab" / "cases" / "trunk.py").read_text()
    (copy / "revstep" / "bench" / "trunk.py").write_text(trunk.replace("from ..bench.", "from ."))
    shutil.rmtree(copy / "revstep_lab")
    # One may lie beside torch.
    (copy / "revstep_lab.py").write_text("raise ModuleNotFoundError(\"No module named 'revstep_lab'\")\n")
    for name in ("python", "start"):
        file = copy / name
        file.write_text(file.read_text().replace(str(Path(python).parent), str(copy)))
    with builds.Build(str(copy / "python"), None, CASE) as build:
        assert build.seconds() > 0 and str(copy) in build.folder


def test_another_build_in_the_same_run(tmp_path, capsys, other, monkeypatch):
    """Its step is slowed down: the ratio says so, and the goal is met."""
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", str(tmp_path)))
    said, data = run(tmp_path, capsys, "--parts", "checks", "--against", other(SLOW))
    part = data["against"]
    ours, theirs = part["measurements"]
    assert (ours["name"], theirs["name"]) == builds.NAMES
    assert ours["ratios"][theirs["name"]] < 0.6 and ours["p50"] < theirs["p50"]
    (goal,) = part["goals"]
    assert goal["met"] and goal["goal"] == 1.02 and goal["value"] == ours["ratios"][theirs["name"]]
    assert goal["what"] in said and "the other build: revstep" in said
    assert part["builds"]["this build"] == part["builds"]["the other build"]
    assert str(tmp_path.parent) not in json.dumps(part)  # no path of a machine in a file of figures


def test_a_slower_build_misses_the_goal(monkeypatch):
    """And the two take turns, each first in every second round."""
    asked = []

    class Fake:
        def __init__(self, python, path, case):
            self.name, self.python = "here" if path else "there", python
            self.folder, self.about = str(path), {"torch": "1"}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            asked.append("end")

        def seconds(self):
            asked.append(self.name)
            return 1.03 if self.name == "here" else 1.0

    monkeypatch.setattr(builds, "Build", Fake)
    result = builds.run_against(CASE, "python", 3)
    assert asked == ["here", "there", "there", "here", "here", "there", "end", "end"]
    assert result["goals"][0]["value"] == 1.03 and not result["goals"][0]["met"]
    monkeypatch.setattr(Fake, "seconds", lambda self: 1.01 if self.name == "here" else 1.0)
    assert builds.run_against(CASE, "python", 3)["goals"][0]["met"]


def test_builds_that_are_not_two_or_differ_in_torch_are_refused():
    def build(folder, version):
        made = object.__new__(builds.Build)
        made.python, made.folder, made.about = "other/python", folder, {"torch": version}
        return made

    builds._check_apart(build("a", "2.13"), build("b", "2.13"))
    with pytest.raises(ConfigError, match="this very revstep"):
        builds._check_apart(build("a", "2.13"), build("a", "2.13"))
    with pytest.raises(ConfigError, match=r"has torch 2\.14, expected 2\.13"):
        builds._check_apart(build("a", "2.13"), build("b", "2.14"))


def test_a_build_that_cannot_run_is_refused_with_what_it_said(other, capsys):
    with pytest.raises(ConfigError, match=r"cannot time a step.*no such step.*expected an environment"):
        builds.run_against(CASE, other("\nraise RuntimeError('no such step')\n"), 1)
    with pytest.raises(ConfigError, match=r"cannot time a step.*tired"):
        builds.run_against(CASE, other(LATE), 9)
    assert _cli.main(["bench", "price", *TINY, "--parts", "checks", "--against", "nowhere/python"]) == 2
    assert "against is 'nowhere/python', expected a Python" in capsys.readouterr().err


# ---- integrations beside another build ----

RUNS = "--loop-steps 40 --pendulums 3 --depths 2 --batch 2 --width 2 --rounds 2".split()
#: Added to the other build: every integration is taken nine times.
SLOW_RUNS = """
_once = integrate
def integrate(*given, **options):
    for _ in range(8):
        _once(*given, **options)
    return _once(*given, **options)
"""


@pytest.fixture
def other_ode(other, tmp_path_factory):
    """The same environment with lines at the end of integrate.py."""
    python = Path(other())
    file = python.parent / "revstep" / "ode" / "_integrate.py"
    original = file.read_text()

    def make(lines: str) -> str:
        file.write_text(original + lines)
        return str(python)

    yield make
    file.write_text(original)


def test_runs_beside_another_build(tmp_path, capsys, other_ode):
    """Its integrations are slowed down: every ratio says so. No part is measured, and no path is recorded."""
    path = tmp_path / "out.json"
    python = other_ode(SLOW_RUNS)
    assert _cli.main(["bench", "ode", *RUNS, "--against", python, "--json", str(path)]) == 0
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    part = data["against"]
    assert data["parts"] == {} and str(tmp_path.parent) not in json.dumps(part)
    assert {g["goal"] for g in part["goals"]} == {builds.TO_OTHER_BUILD, builds.GRADIENT} == {1.02, 1.05}
    for m in part["rows"]:
        assert m["name"] in said and m["ratios"][builds.NAMES[1]] < 0.6 and m["p50"] < m["other"]["p50"]
    with_goals = [m["name"] for m in part["rows"] if builds.bound_of(m["name"]) is not None]
    assert len(part["goals"]) == len(with_goals) and any("gradient" in name for name in with_goals)
    assert not any(name.startswith("one pendulum") for name in with_goals)


def test_slower_runs_miss_their_goals(monkeypatch):
    class Fake:
        def __init__(self, python, path, case, program):
            self.name, self.python, self.folder = ("here" if path else "there"), python, str(path)
            self.about = {"torch": "1", "runs": ["two bodies", "neural field, gradient"]}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def seconds(self, name):
            return 1.03 if self.name == "here" else 1.0

    monkeypatch.setattr(builds, "Build", Fake)
    found = builds.run_ode_against(OdeCase(), "python", 3)
    assert [g["met"] for g in found["goals"]] == [False, True]
    monkeypatch.setattr(Fake, "seconds", lambda self, name: 1.06 if self.name == "here" else 1.0)
    assert [g["met"] for g in builds.run_ode_against(OdeCase(), "python", 3)["goals"]] == [False, False]


def test_builds_that_know_other_runs_are_refused(monkeypatch):
    class Fake:
        def __init__(self, python, path, case, program):
            self.python, self.folder = python, str(path)
            self.about = {"torch": "1", "runs": ["two bodies"] + ["three bodies"] * (path is None)}

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def seconds(self, name):
            pytest.fail("a run was timed")

    monkeypatch.setattr(builds, "Build", Fake)
    with pytest.raises(ConfigError, match=r"the runs .'two bodies'. and .'two bodies', 'three bodies'., exp"):
        builds.run_ode_against(OdeCase(), "python", 3)


def test_parts_and_another_build_are_refused(capsys):
    assert _cli.main(["bench", "ode", "--parts", "two-body", "--against", "nowhere/python"]) == 2
    assert "leave out one" in capsys.readouterr().err
