"""Measurements of integrators that end early: runs that overflow, leave a domain, or draw their coefficients
anew, are claims that fail or are measured over fewer steps.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from revstep import ode
from revstep.errors import ReconstructionError, StateOverflowError
from revstep.ode.methods import ReversibleRK, TwoStep
from revstep.schemes import MidpointBlend
from revstep_lab.verify.ode import checksum, copies, drift, gradients, order
from revstep_lab.verify.ode.oracle import altered, scaled

METHODS = ode.available()


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.mark.parametrize("error", [ReconstructionError("other", 1), StateOverflowError("far", 3, 2.0, 1.0)])
def test_a_way_back_that_is_refused_does_not_arrive(error):
    def reverse():
        raise error

    assert checksum._arrives(SimpleNamespace(reverse=reverse)) is False


def test_a_way_back_that_breaks_is_no_answer():
    with pytest.raises(ZeroDivisionError):
        checksum._arrives(SimpleNamespace(reverse=lambda: 1 / 0))


@pytest.mark.parametrize("exact, arrives", [(True, True), (None, True), (False, False)])
def test_a_way_back_arrives_unless_it_says_that_it_did_not(exact, arrives):
    run = SimpleNamespace(reverse=lambda: SimpleNamespace(exact=exact))
    assert checksum._arrives(run) is arrives


def test_copies_that_leave_the_floats_are_infinitely_far_apart():
    wild = altered("kahan_li6", scaled(1e9))
    apart = copies.distances(wild, "first")
    assert math.isinf(apart[-1].max()) and not torch.isnan(apart).any()
    assert 0 < int(torch.isfinite(apart).all(1).sum()) < copies.STEPS
    assert not any(result.ok for result in copies.measure(wild, "first"))


@pytest.mark.parametrize("claimed", [True, False])
def test_a_run_that_leaves_the_domain_of_its_integral(claimed):
    """Lotka-Volterra's has logarithms: a population below zero has no value of it."""
    left = drift.Series("made up", "invariant", 0.1, (0.0, 1.0, 2.0), (0.0, 1e-9, math.nan))
    found = drift.judged(METHODS["verlet"], "first", left, 1000, claimed)
    assert found.ok is not claimed and found.measured == math.inf
    assert found.why == "not bounded: the trajectory left the integral's domain"
    assert found.bound == (0.0 if claimed else math.inf)


def test_coefficients_that_are_drawn_anew_are_followed_for_fewer_steps():
    """Often enough that a line can be drawn through them, where the run stays in range."""
    assert METHODS["midpoint_blend"].period is None
    for found in drift.measure(METHODS["midpoint_blend"], "first"):
        assert " over 1,000 steps" in found.claim
    damped = TwoStep(MidpointBlend(a=(0.25,) * 200))
    (found,) = drift.measure(damped, "first", 200)
    assert damped.period is None and " over 200 steps" in found.claim
    assert found.why.startswith("secular: slope ") and 0 < found.measured < 1


def test_a_gradient_that_cannot_be_had_fails_both_comparisons():
    found = gradients.measure(altered("midpoint", scaled(1e9)), "first")
    assert [result.claim for result in found] == [gradients.STORED, gradients.DIFFERENCES]
    for result in found:
        assert not result.ok and result.measured == math.inf and "StateOverflowError: " in result.why


@pytest.mark.parametrize("lam, measured_at", [(0.999, 0.5), (0.5, 0.5), (0.25, 0.25)])
def test_order_is_measured_where_the_copies_soon_decouple(lam, measured_at):
    method, remark = order.asymptotic(ReversibleRK("rk4", lam))
    assert method.lam == measured_at and method.base == ReversibleRK("rk4", lam).base
    assert remark.startswith("at lam = 0.5: near lam = 0.999 ") == (lam > measured_at)
    assert bool(remark) == (lam > measured_at)
