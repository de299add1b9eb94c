"""``import revstep`` and ``revstep --help`` do not wait for torch; every public name is there all
the same.
"""

import importlib
import subprocess
import sys
from pathlib import Path

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


@pytest.mark.parametrize("part", ["stack", "ode", "hf._convert", "lm._run", "verify"])
def test_dynamo_is_loaded_where_something_is_compiled_only(part):
    """It takes a second, and most programs compile nothing."""
    code = f"import sys, revstep.{part}; print('torch._dynamo' in sys.modules)"
    if part.startswith("hf"):
        pytest.importorskip("transformers")
        code = f"import sys, transformers; had = 'torch._dynamo' in sys.modules; import revstep.{part};" + (
            " print('torch._dynamo' in sys.modules and not had)"
        )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout == "False\n", run.stderr


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


PARTS = [
    "revstep",
    *(f"revstep.{name}" for name in revstep._PARTS if name != "errors"),
    "revstep.verify.blockcheck",
    "revstep.hf.adapters",
    "revstep.ode.compositions",
    "revstep.ode.fields",
    "revstep.ode.methods",
]


@pytest.mark.parametrize("name", PARTS)
def test_dir_shows_what_is_public(name):
    """Nothing beside it, but names with an underscore; and each name is there."""
    part = importlib.import_module(name)
    shown = {n for n in dir(part) if not n.startswith("_")}
    assert shown == set(part.__all__) and all(hasattr(part, n) for n in shown)


def test_no_module_of_a_public_part_looks_public():
    """Every module has an underscore, or is a part, a registry's file (one scheme, field, method or adapter
    family each), or ``ops.reference`` and ``ode.tableaus``, which are public.
    """
    package = Path(revstep.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if not any(part.startswith("_") for part in path.relative_to(package).parts)
    }
    registries = ("schemes/", "hf/adapters/", "ode/fields/", "ode/methods/", "ode/compositions/")
    assert {name for name in found if not name.startswith(registries)} == {
        "errors.py",
        "ops/reference.py",
        "ode/tableaus.py",
    }
