"""The registry of schemes: names, options, and a new scheme in one file."""

import re
import subprocess
import sys

import pytest

from revstep.errors import ConfigError
from revstep.schemes import available, make

SCHEMES = available()


@pytest.mark.parametrize("name", SCHEMES)
def test_make(name):
    assert make(name) == SCHEMES[name]() and make(name, h=0.125).h == 0.125
    with pytest.raises(ConfigError, match=f"scheme {name!r} has no option 'step', expected some of .*h"):
        make(name, step=1.0)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(
        ConfigError,
        match=re.escape(f"unknown scheme 'leap-frog', expected one of {', '.join(sorted(SCHEMES))}"),
    ):
        make("leap-frog")


def test_available_is_a_copy():
    available().clear()
    assert available() == SCHEMES


NEW_SCHEME = '''
from dataclasses import dataclass
from revstep.schemes._base import Claims, Coefficients, Scheme

@dataclass(frozen=True)
class Reflected(Scheme):
    """A scheme nobody has heard of. Source: this test."""
    h: float = 1.0
    name = "reflected"
    claims = Claims(
        equation="y' = f(y)", order=1, symmetric=False, symplectic=False, evaluations=1, stability="none",
        source="this test",
    )

    def coefficients(self, layer):
        return Coefficients(-1.0, 0.0, self.h)
'''
DISCOVER = """
import sys, torch
import revstep.schemes as schemes
from revstep.schemes import _base
before = set(schemes.available())
schemes.__path__.append(sys.argv[1])
_base._discover.cache_clear()
assert set(schemes.available()) - before == {"reflected"}, schemes.available()
scheme = schemes.make("reflected", h=0.5)
x, f = torch.arange(9, dtype=torch.int32), torch.ones(9)
assert torch.equal(scheme.inverse(scheme.step(x, x, f), x, f), x)
schemes.__path__.pop()
_base._discover.cache_clear()
assert set(schemes.available()) == before
print("found and gone")
"""


def test_a_new_scheme_is_one_file(tmp_path):
    """A file placed on the package's path registers itself; nothing else is touched, and it is gone with the
    file.
    """
    (tmp_path / "reflected.py").write_text(NEW_SCHEME, encoding="utf-8")
    run = subprocess.run([sys.executable, "-c", DISCOVER, str(tmp_path)], capture_output=True, text=True)
    assert run.stdout.strip() == "found and gone", run.stderr
