"""README's commands and example, and the scheme that CONTRIBUTING shows: what a reader copies works."""

import re
import subprocess
import sys

import pages
import pytest

readme = pages.load(pages.ROOT / ".ci" / "readme.py")
CI = (pages.ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_the_example_runs_and_prints_what_it_says(tmp_path):
    code = readme.block("example", "stack")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12, "a ten-line example"
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    promised = re.search(r"print\(stack\.report\)\s+# (.+)", code).group(1)
    assert run.stdout.splitlines()[0] == promised


def test_the_integration_of_the_readme_runs_and_prints_what_it_says(tmp_path):
    code = readme.block("example", "ode")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-W", "error", str(script)], capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == re.findall(r"^print\(.*\)\s+# (\w+):", code, re.M) == ["True", "True"]


def test_the_conversion_of_the_readme_runs_and_prints_what_it_says(tmp_path):
    """transformers may warn about itself: what is compared is the last line printed."""
    code = readme.block("example", "hf")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    script = tmp_path / "example.py"
    script.write_text(code, encoding="utf-8")
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == re.search(r"\.report\)\s+# (.+)", code).group(1)


@pytest.mark.parametrize(
    "name, extra, last", [("demo", "demo", "revstep demo"), ("test", "test", "pytest -n auto")]
)
def test_commands_are_one_line_each_with_the_constraints(name, extra, last):
    (command,) = readme.block("command", name).splitlines()
    steps = command.split(" && ")
    assert steps[-1] == last and steps[-2] == f"pip install -c constraints.txt '.[{extra}]' ./python"
    assert steps[0] == "python3 -m venv .venv" and len(steps) == 4
    toml = (pages.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf"^{extra} = \[", toml, re.M), f"pyproject has no extra {extra}"
    assert "torch==" in (pages.ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_ci_takes_both_commands_from_the_readme():
    assert '.ci/readme.py" command "$1"' in CI and "example stack" in CI
    for name in ("demo", "test"):
        assert re.search(rf"^\s*(?:stage_{name}\(\) {{ )?readme_command {name}\b", CI, re.M), (
            f".ci/run does not run README's command {name}"
        )
    for word in ("'.[test]'", "'.[demo]'", "-m pytest", "&& pytest", "revstep demo"):
        assert word not in CI, f".ci/run writes {word!r} itself"


def test_marked_blocks():
    good = "x\n<!-- command: a -->\n```bash\nrun it\n```\n"
    assert readme.blocks(good) == {("command", "a"): "run it\n"}
    with pytest.raises(ValueError, match="two blocks"):
        readme.blocks(good + good)
    with pytest.raises(ValueError, match="2 marks"):
        readme.blocks(good + "<!-- command: b -->\n\ntext\n")
    with pytest.raises(KeyError, match="no command nothing"):
        readme.block("command", "nothing")


NEW_SCHEME = """
import sys
import revstep.schemes as schemes
from revstep.schemes import _base
schemes.__path__.append(sys.argv[1])
_base._discover.cache_clear()
from revstep_lab.verify import cases
rows = [c for c in cases() if (c.scheme, c.dtype) == ("alternating_blend", "float32")]
rows = [c for c in rows if c.state in ("fixed32", "float64")]
results = [r for row in rows for r in row.run()]
print(len(rows), *(r for r in results if not r.ok))
sys.path.append(sys.argv[2])
import scheme_checks
cls = schemes.available()["alternating_blend"]
scheme_checks.check_order(lambda h: cls(h=h), cls.claims)
scheme_checks.check_symmetry(lambda h: cls(h=h), cls.claims)
scheme_checks.check_symplectic(lambda h: cls(h=h), cls.claims)
print("holds")
"""


def _contributed():
    text = (pages.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (found,) = re.findall(r"^<!-- new scheme: (\w+) -->\n```python\n(.*?)^```$", text, re.M | re.S)
    return found


def _measure(folder, name, code):
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-c", NEW_SCHEME, str(folder), str(pages.ROOT / "tests" / "schemes")],
        capture_output=True,
        text=True,
    )


def test_the_scheme_of_contributing_holds_its_claims(tmp_path):
    run = _measure(tmp_path, *_contributed())
    assert run.stdout.split("\n") == ["2", "holds", ""], run.stdout + run.stderr


def test_a_wrong_scheme_on_that_page_is_rejected(tmp_path):
    name, code = _contributed()
    wrong = code.replace("(1.0 + c) * self.h", "(1.0 - c) * self.h")
    assert wrong != code
    run = _measure(tmp_path, name, wrong)
    assert "holds" not in run.stdout and "order" in run.stderr


def _shown(kind, name):
    """The code that CONTRIBUTING shows for a thing to add."""
    text = (pages.ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return re.search(rf"^<!-- new {kind}: {name} -->\n```python\n(.*?)^```$", text, re.M | re.S)[1]


def _run(code, package="contributed"):
    space = {"__name__": f"{package}.shown"}
    exec(compile(code, "CONTRIBUTING.md", "exec"), space)
    return space


def _faults(method, equation):
    """Claims that ``revstep verify`` finds not to hold."""
    from revstep_lab.verify import ode as suite

    # A million steps.
    found = [
        (name, module.measure(method, equation))
        for name, module in suite.properties().items()
        if name != "drift"
    ]
    return len(found), [f"{name}: {r}" for name, results in found for r in results if not r.ok]


def test_the_method_of_contributing_holds_its_claims():
    count, faults = _faults(_run(_shown("method", "kick_first"))["KickFirst"](), "separable")
    assert count >= 5 and faults == []


def test_a_wrong_method_on_that_page_is_rejected():
    code = _shown("method", "kick_first")
    wrong = code.replace("Micro(0, 1.0, 0.0, 1.0, 1, F, 0.5)", "Micro(0, 1.0, 0.0, 0.9, 1, F, 0.5)")
    assert wrong != code
    assert any(f.startswith("order") for f in _faults(_run(wrong)["KickFirst"](), "separable")[1])


def test_the_composition_of_contributing_has_its_order():
    from revstep import ConfigError

    code = _shown("composition", "long_suzuki").replace("from ._base", "from revstep.ode.compositions._base")
    assert _run(code)["LONG_SUZUKI4"].stages == 7
    with pytest.raises(ConfigError, match="long_suzuki4 is not of order 4"):
        _run(code.replace("6 ** (1 / 3)", "6 ** (1 / 2)"))


def test_the_field_of_contributing_conserves_its_energy():
    import numpy as np

    from revstep import ode

    def change(code):
        run = ode.integrate(
            _run(code)["Duffing"](),
            (np.array([0.5]), np.array([0.0])),
            scheme="kahan_li6",
            h=0.05,
            steps=400,
            save_every=1,
        )
        assert run.reverse().exact
        return np.ptp(run.energy)

    code = _shown("field", "duffing")
    assert change(code) < 1e-8 < 1e-3 < change(code.replace("q - q**3", "q - q**2"))
