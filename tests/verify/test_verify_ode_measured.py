"""Order, symmetry, symplecticity, reversal and stability of every registered method, and the mutants that
each measurement must reject.
"""

import dataclasses
import math

import numpy as np
import pytest
import torch

from revstep import ode
from revstep.ode.methods import available
from revstep_lab.verify.ode import cases, order, properties, round_trip, run, stability, symmetry, symplectic
from revstep_lab.verify.ode.oracle import altered, retimed, scaled
from revstep_lab.verify.ode.problems import CLASSES, PROBLEMS, dop853

METHODS = available()
PAIRS = [(name, equation) for name, method in METHODS.items() for equation in method.equations]
MEASURED = {m.NAME: m for m in (order, round_trip, stability, symmetry, symplectic)}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def failures(results):
    return [str(r) for r in results if not r.ok]


@pytest.mark.parametrize("method, equation", PAIRS)
@pytest.mark.parametrize("prop", MEASURED)
def test_every_claim_holds(prop, method, equation):
    results = MEASURED[prop].measure(METHODS[method], equation)
    assert results and not failures(results), failures(results)


@pytest.mark.parametrize(
    "prop, what", [(prop, what) for prop, module in MEASURED.items() for what in module.MUTANTS]
)
def test_each_mutant_is_rejected(prop, what):
    method, equation = MEASURED[prop].MUTANTS[what]
    assert failures(MEASURED[prop].measure(method, equation)), f"{prop} accepts {what}"


def test_every_property_has_a_mutant():
    assert all(module.MUTANTS for module in properties().values())


def test_no_case_is_skipped():
    """Counted against the registries: properties x methods x the kinds of equation they serve."""
    found = cases()
    assert (
        len(found) == len(set(found)) == len(properties()) * sum(len(m.equations) for m in METHODS.values())
    )
    assert {(c.method, c.equation) for c in found} == set(PAIRS) and set(MEASURED) <= {
        c.property for c in found
    }


def test_a_case_runs_by_name_and_an_error_is_a_claim_that_fails(monkeypatch):
    (case,) = (c for c in cases() if (c.property, c.method, c.equation) == ("symmetry", "verlet", "second"))
    assert run(case) and not failures(run(case))
    monkeypatch.setattr(symmetry, "measure", lambda method, equation: 1 / 0)
    (result,) = run(case)
    assert not result.ok and "ZeroDivisionError" in result.why and "verlet" in result.claim


# ---- the problems ----


@pytest.mark.parametrize("equation, name", [(equation, name) for equation in PROBLEMS for name in CLASSES])
def test_the_closed_forms_are_solutions(equation, name):
    """Two independent references: the closed form, and DOP853 at rtol 1e-13 (off by some 1e-13 of the
    solution).
    """
    problem = PROBLEMS[equation][name]
    assert np.abs(problem.closed(0.0) - np.concatenate(problem.start)).max() < 1e-15
    assert np.abs(dop853(problem, 2) - problem.exact(2)).max() < 1e-12


def test_a_wrong_closed_form_is_seen():
    problem = PROBLEMS["second"]["Hamiltonian"]
    wrong = dataclasses.replace(problem, closed=lambda t: problem.closed(t) + 1e-11)
    assert np.abs(dop853(wrong) - wrong.exact()).max() > 1e-12


@pytest.mark.parametrize("equation", PROBLEMS)
def test_the_non_normal_problems_are_not_normal(equation):
    problem = PROBLEMS[equation]["non-normal"]
    size = sum(map(len, problem.start))
    a = np.stack([problem.rate(0.0, column) for column in np.eye(size)], axis=1)
    assert np.linalg.norm(a @ a.T - a.T @ a, 2) > 0.3 * np.linalg.norm(a, 2) ** 2


def test_every_kind_of_equation_has_all_classes():
    assert set(PROBLEMS) == {equation for method in METHODS.values() for equation in method.equations}
    assert all(tuple(problems) == CLASSES for problems in PROBLEMS.values())


# ---- the estimate of the order ----


def _synthetic(order_, noise=0.0, power=2, correction=3.0):
    h = np.array([m / 64 for m in (8, 7, 6, 5, 4, 3.5, 3, 2.5, 2, 1.75, 1.5, 1.25, 1)])
    errors = (
        7
        * h**order_
        * (1 + correction * h**power)
        * (1 + noise * np.random.default_rng(0).standard_normal(len(h)))
    )
    return order.Convergence("synthetic", tuple(h), tuple(errors), 0.0, power)


@pytest.mark.parametrize("order_", [1, 2, 4, 6, 8])
def test_the_slope_of_a_known_expansion_is_its_order(order_):
    assert abs(_synthetic(order_).slope - order_) < 0.02
    assert abs(_synthetic(order_, noise=1e-3).slope - order_) < 0.15


@pytest.mark.parametrize("wrong", [1, 2, 3, 5, 7])
def test_the_corrections_do_not_hide_a_lower_order(wrong):
    """An error of a lower order that is a tenth of the leading term at the coarsest step is still seen."""
    good = _synthetic(8)
    h = np.array(good.h)
    run_ = dataclasses.replace(
        good, errors=tuple(np.array(good.errors) + 0.1 * good.errors[0] * (h / h[0]) ** wrong)
    )
    assert not order.judged("order 8", run_, 8).ok


def test_errors_below_the_rounding_floor_prove_nothing():
    run_ = dataclasses.replace(_synthetic(2), floor=1.0)
    result = order.judged("order 2", run_, 2)
    assert not result.ok and result.measured == math.inf and "below the rounding floor" in result.why


def test_a_random_blend_that_is_not_consistent_on_average_is_rejected():
    result, *_ = order.measure(altered("midpoint_blend", scaled(1.1)), "first")
    assert not result.ok


def test_a_scheme_whose_order_is_in_expectation_only_says_over_which_draws():
    claims = dataclasses.replace(METHODS["midpoint"].claims("first"), in_expectation=True)
    broken = dataclasses.replace(altered("midpoint", lambda micros: micros), claimed=claims)
    assert all(not r.ok and "say here over which draws" in r.why for r in order.measure(broken, "first"))


def test_the_classes_see_what_each_of_them_is_for():
    """All functions at the start of the step: order 2 on autonomous problems, 1 on non-autonomous ones."""
    results = {
        r.claim.split(", ")[1]: r.ok for r in order.measure(altered("verlet", retimed(0.0)), "separable")
    }
    assert results == {"autonomous": True, "non-autonomous": False, "non-normal": True, "Hamiltonian": True}


# ---- the other measurements ----


def test_a_truncating_quantiser_is_rejected(monkeypatch):
    """States cut to a coarser grid after each step are not undone by the inverse: neither bit-exact nor
    algebraic.
    """
    from revstep.ode._loop import Walker

    forward = Walker.forward

    def cut(self, *args):
        forward(self, *args)
        grid = 2**12 if self.states[0].dtype == torch.int64 else 2.0**-40
        self.states = [(s // grid) * grid for s in self.states]
        self.views = [None, None]

    monkeypatch.setattr(Walker, "forward", cut)
    results = round_trip.measure(METHODS["verlet"], "separable")
    assert all(not r.ok for r in results), [str(r) for r in results]


def test_a_lost_carry_is_rejected(monkeypatch):
    """Blend keeps a bit an element and step; with zeros for them the start does not come back."""
    from revstep.ode._loop import Walker

    back = Walker.back

    def forgetful(self, *args):
        self.carries = [torch.zeros_like(c) for c in self.carries]
        back(self, *args)

    monkeypatch.setattr(Walker, "back", forgetful)
    assert any(not r.ok and "bit-exact" in r.claim for r in round_trip.measure(METHODS["blend"], "first"))


def test_the_bound_of_the_float_way_back_is_not_loose_by_more_than_the_majorant():
    """The bound of a method without amplification stays within some thousand roundings: it would see an error
    of 1e-11.
    """
    for name in ("verlet", "leapfrog", "hamiltonian"):
        assert all(r.bound < 1e-11 for r in round_trip.measure(METHODS[name], "second"))


def test_the_region_of_leapfrog_is_the_interval_of_theory():
    found = stability.region(METHODS["leapfrog"], "second")
    real = np.abs(found.z.imag) < 1e-12
    inside = real & (found.z.real > -4) & (found.z.real < 0)
    outside = real & ((found.z.real < -4.2) | (found.z.real > 0.2))
    assert (
        inside.sum() > 5
        and np.allclose(found.root[inside], 1, atol=1e-12)
        and (found.growth[outside] > 1.1).all()
    )


def test_omega_is_that_of_positions_and_momenta():
    shear = torch.tensor([[1.0, 0.3], [0.0, 1.0]], dtype=torch.float64)
    assert symplectic.defect(shear) == 0.0 and symplectic.defect(1.5 * shear) == pytest.approx(1.25)
    swap = torch.kron(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.eye(2)).double()
    assert symplectic.defect(swap) == 2.0


def test_all_names_are_those_of_ode():
    assert set(METHODS) == set(ode.available())
