"""What the grid did to a run: both loops record the same, components that never moved are errors, copies that
part too.
"""

import math

import numpy as np
import pytest
import torch

import revstep
from revstep import ode
from revstep.errors import ParasiticModeError, ResolutionError, ResolutionWarning
from revstep.ode import _records, _watch

FIELDS = {
    "kepler": (lambda: ode.fields.Kepler(), (np.array([0.9, 0.0]), np.array([0.0, 1.1])), "kahan_li6"),
    "lotka volterra": (lambda: ode.fields.LotkaVolterra(), np.array([1.2, 0.9]), "reversible_rk4"),
    "doubled": (lambda: ode.fields.VanDerPol(), np.array([1.0, 0.5]), "verlet"),
    "batch": (lambda: ode.fields.Harmonic(), (np.ones((5, 2)), np.zeros((5, 2))), "verlet"),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_both_loops_notice_the_same(kind):
    make, y0, scheme = FIELDS[kind]
    a, b = (
        ode.integrate(make(), y0, scheme=scheme, h=0.02, steps=600, scale=1.0, loop=loop).stats
        for loop in ("compiled", "python")
    )
    for name in ("increment_bits", "rounded_to_zero", "looked_at"):
        assert getattr(a, name) == getattr(b, name), name
    # The loop on tensors compares with the state at the same step, the compiled one with it at the end of a
    # chunk.
    assert a.copies_apart == b.copies_apart or 0.25 <= a.copies_apart / b.copies_apart <= 4
    assert a.looked_at > 0 and a.increment_bits > 30


def test_what_is_looked_at():
    looked = [0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert [n for n in range(600) if _records.looked_at(n)] == looked
    for first, last in (
        (0, 600),
        (0, 3),
        (5, 20),
        (20, 200),
        (250, 257),
        (256, 256),
        (0, 1),
        (0, 4),
        (0, 5),
        (3, 7),
    ):
        assert _watch.looks(first, last) == sum(map(_records.looked_at, range(first, last)))


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_a_component_that_never_moves_is_an_error_and_its_advice_passes(loop):
    """An atom trap in metres and kilograms, its momentum in units of 1 kg m/s."""
    mass, omega = 1.44e-25, 2 * math.pi * 100
    field = ode.Separable(lambda t, p: p / mass, lambda t, q: -mass * omega**2 * q)
    start = (np.array([1e-5]), np.array([0.0]))
    if loop == "compiled":
        field, start = ode.fields.Harmonic(omega=omega), (np.array([1e-30]), np.array([0.0]))
    options = {"scheme": "verlet", "h": 1e-5, "steps": 300, "loop": loop}
    with pytest.raises(ResolutionError, match="never moved in 300 steps") as caught:
        ode.integrate(field, start, scale=(2.0**-16, 1.0) if loop == "python" else (2.0**-99, 1.0), **options)
    scale = caught.value.scale
    for _ in range(3):
        try:
            run = ode.integrate(field, start, scale=scale, **options)
            break
        except ResolutionError as error:
            scale = error.scale
    assert run.ys[-1, 0] == pytest.approx(start[0][0] * math.cos(omega * 3e-3), rel=1e-3)


def test_without_the_judgement_it_goes_unsaid(monkeypatch):
    """The mutant, as it was: the trap does not move at all, and nothing says so."""
    monkeypatch.setattr(_watch, "judge", lambda *_: None)
    run = ode.integrate(
        lambda t, q: -1e-20 * q, (np.ones(1), np.zeros(1)), scheme="verlet", h=1.0, steps=50, scale=1.0
    )
    assert run.velocities[-1, 0] == 0.0 and run.reverse().exact


def test_few_bits_are_a_warning_with_a_scale_that_helps():
    field = lambda t, y: np.full_like(y, 1e-15)  # noqa: E731
    with pytest.warns(ResolutionWarning, match="fewer than 8; pass scale=") as caught:
        ode.integrate(field, np.zeros(1), h=1.0, steps=50, scale=1.0)
    run = ode.integrate(field, np.zeros(1), h=1.0, steps=50, scale=caught[0].message.scale)
    assert run.ys[-1, 0] == pytest.approx(5e-14, rel=1e-9) and run.stats.increment_bits > 20


@pytest.mark.filterwarnings("error")
def test_noise_beside_large_components_is_no_alarm():
    """sin(pi) beside 1, a component at rest, and a plane in space."""
    for start in (np.array([1.0, math.sin(math.pi)]), np.array([1.0, 0.0]), np.array([1.0, 1e-17])):
        ode.integrate(lambda t, q: -q, (start, np.zeros(2)), h=0.01, steps=200)
    ode.integrate(
        lambda t, q: -q, (np.array([1.0, math.sin(math.pi)]), np.zeros(2)), h=0.01, steps=200, scale=1.0
    )


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_copies_that_part_end_the_run(loop):
    """The bare doubled system on a damped spring: their difference grows by e each unit of time."""
    bare = ode.methods.SplittingMethod(ode.compositions.get("verlet"), couple=0.0)
    field = ode.fields.Linear([[0.0, 1.0], [-1.0, -2.0]])
    options = {"h": 0.01, "steps": 3000, "loop": loop}
    options["steps"] = 1300  # it would leave the range soon after
    with pytest.raises(
        ParasiticModeError, match=r"couple = 0 leaves them alone: take the default couple"
    ) as caught:
        ode.integrate(field, np.array([1.0, 0.0]), scheme=bare, **options)
    assert caught.value.distance > caught.value.limit > 0 and caught.value.step >= 0
    run = ode.integrate(field, np.array([1.0, 0.0]), scheme="verlet", **options)
    assert run.stats.copies_apart < 0.01


def test_copies_are_measured_against_the_state_as_it_has_become():
    """A start of nearly zero that is driven to 1: the copies are a small share of the state, not of its
    start.
    """
    run = ode.integrate(lambda t, y: 1.0 - y, np.array([1e-9]), scheme="verlet", h=0.25, steps=40)
    assert run.stats.copies_apart < 0.25 and run.ys[-1, 0] == pytest.approx(1.0, abs=1e-2)


def test_methods_without_copies_say_none():
    run = ode.integrate(ode.fields.Kepler(), (np.array([0.9, 0.0]), np.array([0.0, 1.1])), h=0.01, steps=20)
    assert run.stats.copies_apart is None
    floats = ode.integrate(
        lambda t, y: -y, torch.ones(2).double(), h=0.01, steps=20, state=revstep.Float(torch.float64)
    )
    assert (
        floats.stats.increment_bits is None and floats.stats.looked_at == 0 and floats.stats.copies_apart > 0
    )
