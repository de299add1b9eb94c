"""The same bits as before: 455 outputs of all parts of the library, recorded once, come out of this build."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import outputs

for package in ("transformers", "peft"):
    pytest.importorskip(package, reason="some outputs are of converted models")

RECORDED = json.loads(outputs.FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def found():
    run = subprocess.run([sys.executable, outputs.__file__], capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout)


def differing(kind, found):
    """Names whose bits are others, or which one of the two lacks."""
    recorded = RECORDED[kind]
    return sorted(
        name for name in recorded.keys() | found[kind].keys() if recorded.get(name) != found[kind].get(name)
    )


def test_outputs_of_our_own_arithmetic(found):
    assert len(RECORDED["own"]) >= 400 and differing("own", found) == []


def test_outputs_that_rest_on_torch(found):
    if found["torch"] != RECORDED["torch"]:
        pytest.skip(
            f"torch alone computes other bits here than where they were recorded ({found['torch']}, recorded"
            f" {RECORDED['torch']})"
        )
    assert len(RECORDED["on torch"]) >= 40 and differing("on torch", found) == []


def test_mutants_are_noticed(monkeypatch):
    """A coefficient that is off by one part in a million, and a state by its last bit."""
    first = list(itertools.islice(outputs.stacks(), 3))
    assert [outputs.digest(*tensors) for _, tensors in first] == [RECORDED["own"][name] for name, _ in first]
    right = outputs.Cubic.forward
    monkeypatch.setattr(outputs.Cubic, "forward", lambda self, x: right(self, x, 1.000001))
    for name, tensors in itertools.islice(outputs.stacks(), 3):
        assert outputs.digest(*tensors) != RECORDED["own"][name]
    x = torch.ones(3)
    assert outputs.digest(x) != outputs.digest(torch.nextafter(x, 2 * x))
    assert outputs.digest(x) != outputs.digest(x.double()) and outputs.digest(x) != outputs.digest(x[:2])
    assert differing("own", {"own": {**RECORDED["own"], "another": "0"}}) == ["another"]
