"""Built-in fields: forces are -grad V, first integrals are conserved, both array kinds agree, wrong
parameters and shapes are named.
"""

import dataclasses

import field_cases as cases
import numpy as np
import pytest
import torch

from revstep.errors import ConfigError
from revstep.ode import fields

EPS = np.finfo(np.float64).eps


def test_every_field_has_a_case_and_a_number_of_its_own():
    assert set(cases.MADE) == set(fields.available())
    numbers = [cls.number for cls in fields.available().values()]
    assert len(set(numbers)) == len(numbers) and min(numbers) > 0  # 0 is a user's pointer


def test_fields_are_found_by_name():
    assert fields.get("Kepler") is fields.Kepler is fields.available()["Kepler"]
    with pytest.raises(ConfigError, match=r"no field 'kepler'; there are .*Kepler"):
        fields.get("kepler")


# ---- force and energy
# -----------------------------------------------------------------------------------------


def energies():
    for name, kind in cases.CASES:
        if kind != "first" and "energy" in cases.make(name, kind).integrals():
            yield name, kind


def force_error(field, name):
    """Largest difference of the force per mass from -grad of the energy over q, in units of its size."""
    q, v = cases.state(name)
    q = q.clone().requires_grad_()
    energy = field.integrals()["energy"]
    (gradient,) = torch.autograd.grad(energy(q, v).sum(), q)
    masses = torch.tensor(field.masses, dtype=torch.float64)[:, None] if hasattr(field, "masses") else 1.0
    force = field.functions()[-1](0.0, q.detach()) * masses
    return float((force + gradient).abs().max() / force.abs().max())


#: A force and its differentiated energy are each at most a few dozen operations.
FORCE_BOUND = 64 * EPS


@pytest.mark.parametrize("name, kind", list(energies()))
def test_force_is_minus_the_gradient_of_the_energy(name, kind):
    assert force_error(cases.make(name, kind), name) < FORCE_BOUND


@pytest.mark.parametrize("name, kind", list(energies()))
def test_a_broken_force_is_rejected(name, kind):
    field = cases.make(name, kind)
    cls = type(field)
    broken = type(cls.__name__, (cls,), {"force": lambda self, t, q: cls.force(self, t, q) * (1 + 1e-9 * q)})
    object.__setattr__(field, "__class__", broken)
    assert force_error(field, name) > FORCE_BOUND


def drift(field, name, kind, integral):
    """How fast an integral changes along the field, in units of the size of the terms that cancel."""
    y = [x.clone().requires_grad_() for x in cases.state(name)]
    if kind == "first":
        y, flow = y[:1], [field.functions()[0](0.0, y[0])]
    else:
        flow = [
            field.functions()[0](0.0, y[1]) if kind == "separable" else y[1],
            field.functions()[-1](0.0, y[0]),
        ]
    value = integral(*y)
    worst = 0.0
    for component in value.reshape(len(value), -1).T:
        terms = [
            g * f
            for g, f in zip(
                torch.autograd.grad(component.sum(), y, retain_graph=True, allow_unused=True), flow
            )
            if g is not None
        ]
        parts = torch.cat([t.reshape(len(value), -1) for t in terms], 1)
        size = parts.abs().sum(1).max()
        worst = max(worst, float(parts.sum(1).abs().max().detach() / size.detach()) if size else 0.0)
    return worst


CONSERVED = [
    (name, kind, integral) for name, kind in cases.CASES for integral in cases.make(name, kind).integrals()
]


@pytest.mark.parametrize("name, kind, integral", CONSERVED)
def test_first_integrals_do_not_change_along_the_field(name, kind, integral):
    field = cases.make(name, kind)
    assert drift(field, name, kind, field.integrals()[integral]) < FORCE_BOUND
    # The same check sees a quantity that is not conserved.
    size = (lambda q, v: (q * q).flatten(1).sum(1)) if kind != "first" else (lambda y: (y * y).sum(-1))
    assert drift(field, name, kind, size) > 1e-3


def test_most_fields_conserve_something():
    assert {name for name, _, _ in CONSERVED} == set(cases.MADE) - {"VanDerPol"}


@pytest.mark.parametrize("name, kind", cases.CASES)
def test_arrays_and_tensors_agree(name, kind):
    field = cases.make(name, kind)
    q, v = cases.state(name)
    for f in field.functions():
        expected, found = f(0.0, q), f(0.0, q.numpy())
        assert isinstance(found, np.ndarray) and expected.shape == q.shape == found.shape
        # Their sines differ.
        bound = 2 * EPS * float(expected.abs().max()) if name in cases.TRANSCENDENTAL else 0.0
        np.testing.assert_allclose(found, expected.numpy(), rtol=0, atol=bound)
    for integral in field.integrals().values():
        parts = (q,) if kind == "first" else (q, v)
        np.testing.assert_allclose(
            integral(*(p.numpy() for p in parts)), integral(*parts).numpy(), rtol=64 * EPS, atol=64 * EPS
        )


def test_a_batch_is_its_systems():
    for name, kind in cases.CASES:
        q, _ = cases.state(name, batch=(2, 3))
        f = cases.make(name, kind).functions()[-1]
        assert torch.equal(f(0.0, q)[1, 2], f(0.0, q[1, 2])), name


# ---- what is refused
# ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, kind", cases.CASES)
def test_parameters_are_checked(name, kind):
    field = cases.make(name, kind)
    for parameter in (
        f.name for f in dataclasses.fields(field) if f.name not in ("equation", "masses", "A", "space")
    ):
        for bad in (float("nan"), float("inf"), "1", None, True):
            with pytest.raises(ConfigError, match=rf"{name} {parameter}.*expected a"):
                cases.make(name, kind, **{parameter: bad})
    if "equation" in {f.name for f in dataclasses.fields(field)}:
        with pytest.raises(ConfigError, match=f"{name} equation is 'third', expected one of"):
            cases.make(name, "third")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: fields.NBody(masses=()), "expected one or more, none negative"),
        (lambda: fields.NBody(masses=(1.0, -1.0)), "expected one or more, none negative"),
        (lambda: fields.NBody(space=4), "1, 2 or 3 dimensions"),
        (lambda: fields.NBody(softening=-0.1), "softening >= 0"),
        (lambda: fields.Linear([[1.0, 2.0]]), r"shape \(1, 2\), expected a square matrix"),
        (lambda: fields.Linear([[float("nan")]]), "finite numbers"),
        (lambda: fields.Kepler(mu=-1.0), "expected a positive number"),
    ],
)
def test_wrong_parameters_are_named(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


@pytest.mark.parametrize("name, kind", cases.CASES)
def test_wrong_shapes_are_named(name, kind):
    field = cases.make(name, kind)
    field.check_event(cases.MADE[name][1])
    if name in ("Fput", "Harmonic", "LotkaVolterraLog", "Pendulum"):  # any number of components
        return
    wrong = (*cases.MADE[name][1][:-1], 7)
    with pytest.raises(ConfigError, match=f"a system of {name} has shape .*7.*expected"):
        field.check_event(wrong)
