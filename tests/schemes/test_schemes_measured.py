"""Every registered scheme does what its claims say, and the same checks reject broken ones."""

import dataclasses

import pytest
import scheme_checks as checks
import torch

from revstep import Float, MidpointBlend

SCHEMES = checks.SCHEMES


@pytest.mark.parametrize("name", checks.PLAIN)
def test_order(name):
    checks.check_order(lambda h: SCHEMES[name](h=h), SCHEMES[name].claims)


@pytest.mark.parametrize("name", checks.EXPECTED_ONLY)
def test_order_in_expectation(name):
    order = checks.expected_path_order(lambda h, a: SCHEMES[name](h=h, a=a))
    assert abs(order - SCHEMES[name].claims.order) <= 0.15


def test_order_in_expectation_rejects_a_wrong_gamma():
    wrong = checks.broken(MidpointBlend, checks.BREAKS["gamma twice as large"])
    assert abs(checks.expected_path_order(lambda h, a: wrong(h=h, a=a)) - 1) > 0.15


def test_midpoint_blend_with_one_a_solves_the_equation_slowed_by_1_plus_a():
    """One draw alone is not consistent with y' = f: it is a first-order method for y' = f / (1 + a)."""
    fields, exact = checks.PROBLEMS["y' = f(y)"]["logistic"]
    assert abs(checks.measured_order(lambda h: MidpointBlend(h=1.5 * h, a=0.5), (fields, exact)) - 1) <= 0.15
    assert abs(checks.measured_order(lambda h: MidpointBlend(h=h, a=0.5), (fields, exact))) <= 0.15


@pytest.mark.parametrize("change", checks.BREAKS.values(), ids=checks.BREAKS)
@pytest.mark.parametrize("name", checks.PLAIN)
def test_order_check_rejects(name, change):
    wrong = checks.broken(SCHEMES[name], change)
    with pytest.raises(AssertionError, match="order"):
        checks.check_order(lambda h: wrong(h=h), wrong.claims)


@pytest.mark.parametrize("name", checks.PLAIN)
def test_order_check_rejects_a_boast(name):
    claims = dataclasses.replace(SCHEMES[name].claims, order=SCHEMES[name].claims.order + 1)
    with pytest.raises(AssertionError, match="order"):
        checks.check_order(lambda h: SCHEMES[name](h=h), claims)


def test_a_new_equation_needs_a_problem():
    claims = dataclasses.replace(SCHEMES["midpoint"].claims, equation="y''' = f(y)")
    with pytest.raises(AssertionError, match="no test problem"):
        checks.check_order(lambda h: SCHEMES["midpoint"](h=h), claims)


@pytest.mark.parametrize(
    "name, start",
    [(name, start) for name in checks.PLAIN for start in SCHEMES[name].starts if start != "repeat"],
)
def test_started_with_the_schemes_own_first_step(name, start):
    """The one-step start keeps the order (second-order equations start at rest, which is what it assumes)."""
    cls = SCHEMES[name]
    rest = ([lambda t, y: -y], [lambda t: checks.vector(torch.cos(torch.tensor(t)).item())])
    field, exact = rest if "''" in cls.claims.equation else checks.PROBLEMS[cls.claims.equation]["logistic"]
    errors = []
    for n in (32, 64, 128, 256, 512):
        scheme, h = cls(h=1.0 / n), 1.0 / n
        prev = cur = exact[0](0.0)
        for j in range(n):
            alpha, beta, gamma = scheme.start_coefficients(j, start)
            prev, cur = cur, alpha * prev + beta * cur + gamma * field[0](j * h, cur)
        errors.append(
            float(
                (cur - checks.vector(0.5403023058681398 if field is rest[0] else float(exact[0](1.0)))).abs()
            )
        )
    assert abs(checks.slopes(errors) - cls.claims.order) <= 0.15


@pytest.mark.parametrize("name", SCHEMES)
def test_time_symmetry(name):
    checks.check_symmetry(lambda h: SCHEMES[name](h=h), SCHEMES[name].claims)


@pytest.mark.parametrize("name", [n for n, c in SCHEMES.items() if c.claims.symmetric])
def test_symmetry_check_rejects_a_blend(name):
    wrong = checks.broken(SCHEMES[name], lambda a, b, g: (0.75 * a, b + 0.25 * a, g))
    with pytest.raises(AssertionError, match="asymmetry"):
        checks.check_symmetry(lambda h: wrong(h=h), wrong.claims)


@pytest.mark.parametrize("name", [n for n, c in SCHEMES.items() if not c.claims.symmetric])
def test_symmetry_check_rejects_a_false_claim(name):
    claims = dataclasses.replace(SCHEMES[name].claims, symmetric=True)
    with pytest.raises(AssertionError, match="asymmetry"):
        checks.check_symmetry(lambda h: SCHEMES[name](h=h), claims)


@pytest.mark.parametrize("name", SCHEMES)
def test_symplecticity(name):
    checks.check_symplectic(lambda h: SCHEMES[name](h=h), SCHEMES[name].claims)


@pytest.mark.parametrize("name", SCHEMES)
def test_symplecticity_check_rejects_a_false_claim_and_a_loss(name):
    cls = SCHEMES[name]
    with pytest.raises(AssertionError, match="area"):
        checks.check_symplectic(
            lambda h: cls(h=h), dataclasses.replace(cls.claims, symplectic=not cls.claims.symplectic)
        )
    if cls.claims.symplectic:
        lossy = checks.broken(cls, lambda a, b, g: (a * (1 - 2.0**-20), b, g))
        with pytest.raises(AssertionError, match="area"):
            checks.check_symplectic(lambda h: lossy(h=h), cls.claims)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize("name", SCHEMES)
def test_float_amplification_is_as_large_as_said(name, dtype):
    """The rounding error of a float inverse over 12 steps stays within 64 eps x the factor ``amplification``
    predicts (and is measured).
    """
    scheme, fmt, n = SCHEMES[name](h=0.01), Float(dtype), 12 * SCHEMES[name].halves
    g = torch.Generator().manual_seed(0)
    states = [torch.randn(400, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]
    for k in range(n):
        states.append(scheme.step(states[k], states[k + 1], torch.sin, layer=k, state=fmt))
    prev, cur = states[-2:]
    for k in reversed(range(n)):
        prev, cur = scheme.inverse(cur, prev, torch.sin, layer=k, state=fmt), prev
    error = float((prev - states[0]).abs().max() / max(s.abs().max() for s in states))
    # Of errors through cur.
    growth = 2.0**n if any(abs(scheme.coefficients(k).beta) > 1 for k in range(n)) else float(n)
    assert error <= 64 * torch.finfo(dtype).eps * scheme.amplification(n) * growth
