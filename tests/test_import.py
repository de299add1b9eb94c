"""``import revstep`` and ``revstep --help`` do not wait for torch; every public name is there all
the same.
"""

import subprocess
import sys

import pytest

import revstep

HEAVY = "sorted({'torch', 'numpy', 'transformers', 'scipy'} & sys.modules.keys())"


def loaded(code):
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}; print({HEAVY})"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "code",
    [
        "import revstep",
        "from revstep import _cli; _cli.main(['--help'])",
        "from revstep import _cli; _cli.main(['finetune', '--help'])",
    ],
)
def test_nothing_heavy_is_imported(code):
    assert loaded(code) == "[]"


def test_that_check_is_one():
    assert "torch" in loaded("import revstep; revstep.Blend")


def test_every_name_is_there():
    assert (
        {"Blend", "FixedPoint", "ReversibleStack", "ConfigError", "ops"}
        <= set(revstep.__all__)
        == set(dir(revstep))
    )
    for name in revstep.__all__:
        assert getattr(revstep, name) is not None and name in vars(revstep)
    names: dict = {}
    exec("from revstep import *", names)
    assert set(revstep.__all__) <= names.keys()


def test_parts_and_unknown_names():
    assert revstep.hf.convert and revstep.stack.Report and revstep.ode.integrate
    for name in ("blend", "_Blend", "__wrapped__"):
        with pytest.raises(AttributeError, match=f"module 'revstep' has no attribute '{name}'"):
            getattr(revstep, name)
