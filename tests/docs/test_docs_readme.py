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
    run = subprocess.run([sys.executable, "-W", "error", str(script)], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    promised = re.search(r"print\(stack\.report\)\s+# (.+)", code).group(1)
    assert run.stdout.splitlines()[0] == promised


@pytest.mark.parametrize("name, extra, last", [("demo", "lm", "revstep demo"), ("test", "test", "pytest")])
def test_commands_are_one_line_each_with_the_constraints(name, extra, last):
    (command,) = readme.block("command", name).splitlines()
    steps = command.split(" && ")
    assert steps[-1] == last and steps[-2] == f"pip install -c constraints.txt '.[{extra}]'"
    assert steps[0] == "python3 -m venv .venv" and len(steps) == 4
    toml = (pages.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(rf"^{extra} = \[", toml, re.M), f"pyproject has no extra {extra}"
    assert "torch==" in (pages.ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_ci_takes_both_commands_from_the_readme():
    assert '.ci/readme.py" command "$1"' in CI and "example stack" in CI
    for name in ("demo", "test"):
        assert re.search(rf"^\s*(?:stage_{name}\(\) {{ )?readme_command {name}\b", CI, re.M), f".ci/run does not run README's command {name}"
    for word in ("'.[test]'", "'.[lm]'", "-m pytest", "&& pytest", "revstep demo"):
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
from revstep.schemes import registry
schemes.__path__.append(sys.argv[1])
registry._discover.cache_clear()
from revstep.verify import cases
rows = [c for c in cases() if c.scheme == "alternating_blend" and c.state in ("fixed32", "float64") and c.dtype == "float32"]
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
    return subprocess.run([sys.executable, "-c", NEW_SCHEME, str(folder), str(pages.ROOT / "tests" / "schemes")], capture_output=True, text=True)


def test_the_scheme_of_contributing_holds_its_claims(tmp_path):
    run = _measure(tmp_path, *_contributed())
    assert run.stdout.split("\n") == ["2", "holds", ""], run.stdout + run.stderr


def test_a_wrong_scheme_on_that_page_is_rejected(tmp_path):
    name, code = _contributed()
    wrong = code.replace("(1.0 + c) * self.h", "(1.0 - c) * self.h")
    assert wrong != code
    run = _measure(tmp_path, name, wrong)
    assert "holds" not in run.stdout and "order" in run.stderr
