"""Gradients, drift, determinism and checksums of integrations: hold for the methods, and each rejects its
mutants by name.
"""

import dataclasses
import math

import pytest
import torch

from revstep import ode
from revstep.ode import _gradient
from revstep.ode._solution import Solution
from revstep_lab.verify.ode import checksum, copies, determinism, drift, gradients

PROPERTIES = {m.NAME: m for m in (checksum, copies, determinism, drift, gradients)}
METHODS = ode.available()
#: One of each kind: two-step, two-stream, splitting, Runge-Kutta. All of them are measured by ``revstep
#: verify``.
CASES = [
    ("midpoint", "first"),
    ("blend", "first"),
    ("leapfrog", "second"),
    ("hamiltonian", "separable"),
    ("verlet", "first"),
    ("yoshida4", "second"),
    ("reversible_rk4", "first"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", PROPERTIES)
@pytest.mark.parametrize("method, equation", CASES)
def test_holds(name, method, equation):
    results = PROPERTIES[name].measure(METHODS[method], equation)
    assert results and all(r.ok for r in results), [str(r) for r in results]


@pytest.mark.parametrize(
    "name, what", [(name, what) for name, module in PROPERTIES.items() for what in module.MUTANTS]
)
def test_mutants_are_rejected(name, what):
    method, equation = PROPERTIES[name].MUTANTS[what]
    results = PROPERTIES[name].measure(method, equation)
    assert not all(r.ok for r in results), [str(r) for r in results]


def failing(module, method="verlet", equation="second"):
    return [r.claim for r in module.measure(METHODS[method], equation) if not r.ok]


# ---- mutants of the library itself ----


def test_a_gradient_that_forgets_the_other_slot_is_rejected(monkeypatch):
    original = _gradient.Sweep._vjp
    monkeypatch.setattr(_gradient.Sweep, "_vjp", lambda self, *a: (original(self, *a)[0], None))
    assert set(failing(gradients)) == {gradients.STORED, gradients.DIFFERENCES}


def test_a_gradient_off_by_rounding_is_rejected_by_the_stored_oracle_alone(monkeypatch):
    original = _gradient.Sweep._vjp

    def nudged(self, *a):
        value, g = original(self, *a)
        return value, g if g is None else g * (1 + 2.0**-51)

    monkeypatch.setattr(_gradient.Sweep, "_vjp", nudged)
    assert failing(gradients) == [gradients.STORED]


def test_a_reversal_that_calls_everything_exact_is_rejected(monkeypatch):
    original = Solution.reverse
    monkeypatch.setattr(Solution, "reverse", lambda self: dataclasses.replace(original(self), exact=True))
    assert failing(checksum) == ["one flipped bit is seen when reversed"]


def test_a_backward_pass_that_compares_nothing_is_rejected(monkeypatch):
    from revstep.ode._loop import Walker

    monkeypatch.setattr(Walker, "compare", lambda self, expected: None)
    assert failing(checksum) == ["one flipped bit is found in backward"]


# ---- the fit ----


def _series(change):
    t = tuple(float(n) for n in range(len(change)))
    return drift.Series("made up", "energy", 0.1, t, tuple(change))


def test_oscillation_is_bounded_and_a_line_under_it_is_secular():
    verlet = METHODS["verlet"]
    wave = [1e-4 * math.sin(0.7 * n) + 3e-5 * math.sin(0.011 * n) for n in range(2001)]
    assert drift.judged(verlet, "second", _series(wave), 1000, True).ok
    line = [w + 5e-8 * n for n, w in enumerate(wave)]  # 1e-4 by the end, as much as the wave
    found = drift.judged(verlet, "second", _series(line), 1000, True)
    assert not found.ok and "secular: slope " in found.why
    slope, error = _series(line).trend()
    assert abs(slope - 5e-8) < 4 * error


def test_what_is_not_claimed_is_measured_and_named():
    (found,) = drift.measure(METHODS["reversible_rk4"], "first")
    assert found.ok and found.bound == math.inf and found.why.startswith("secular: slope ")
    (found,) = drift.measure(METHODS["blend"], "first")
    assert found.ok and "left the format's range at step" in found.why


def test_each_result_says_how_long_it_was():
    for found in drift.measure(METHODS["verlet"], "separable"):
        assert (
            found.claim.split(" over ")[0] in ("energy", "angular momentum")
            and "over 1,000,000 steps" in found.claim
        )
