"""Bodies without mass: they pull nothing, wherever they are."""

import itertools

import numpy as np
import pytest
import torch

import revstep
from revstep import ode
from revstep.ode import _compiled, methods
from revstep.ode.fields import NBody

H, N = 2 * np.pi / 200, 50
LOOPS = ["compiled", "python"]


def satellites(space, many, where=1.0):
    """A body of mass 1 and test particles on one circular orbit, all at the same place."""
    q, v = np.zeros((1 + many, space)), np.zeros((1 + many, space))
    q[1:, 0], v[1:, -1] = where, where**-0.5 if space > 1 else 0.0
    return q, v


def run(masses, y0, space, **options):
    return ode.integrate(
        NBody(masses, space=space), y0, **{"scheme": "kahan_li6", "h": H, "steps": N, **options}
    )


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("many", [2, 3, 5])
@pytest.mark.parametrize("space", [2, 3])
def test_test_particles_at_one_place_move_as_one(space, many, loop):
    one = run((1.0, 0.0), satellites(space, 1), space, loop=loop)
    all_of_them = run((1.0,) + (0.0,) * many, satellites(space, many), space, loop=loop)
    assert all_of_them.stats.loop == loop and all_of_them.reverse().exact
    for k in range(1, many + 1):
        assert np.array_equal(all_of_them.ys[-1][k], one.ys[-1][1])
    assert np.array_equal(all_of_them.energy, np.zeros(2)) and abs(np.linalg.norm(one.ys[-1][1]) - 1) < 1e-8


def test_with_any_mass_they_would_not(monkeypatch):
    """The broken variant: what the compiled field is told is not 0."""
    monkeypatch.setattr(NBody, "params", lambda self: (2.0, 0.0, *(max(m, 5e-324) for m in self.masses)))
    with pytest.raises(revstep.StateOverflowError, match="step 0"):
        run((1.0, 0.0, 0.0), satellites(2, 2), 2, loop="compiled")


@pytest.mark.parametrize("lanes", [1, 16])
@pytest.mark.parametrize("space", [1, 2, 3])
def test_both_loops_have_the_same_bits_wherever_the_massless_stand(space, lanes):
    random = np.random.default_rng(space)
    for masses in itertools.product([0.0, 0.75], repeat=4):
        field, method = NBody(masses, space=space), methods.resolve("verlet", H, None)
        q, v = random.standard_normal((2, 19, 4, space)) * 4.0
        q[:, 3] = q[:, 0] if masses[0] == masses[3] == 0.0 else q[:, 3]
        slots = tuple(torch.from_numpy(x.reshape(19, -1).copy()) for x in (q, v))
        _compiled.run(
            field.compiled(), lambda n, m=method: m.micros(n, "second"), slots, h=H, steps=4, lanes=lanes
        )
        for _ in range(4):
            q = q + 0.5 * H * v
            v = v + H * field.force(0.0, q)
            q = q + 0.5 * H * v
        assert np.array_equal(slots[0].numpy(), q.reshape(19, -1)) and np.isfinite(q).all()


def test_those_with_mass_do_not_notice():
    """Without the massless ones between them, the others move the same."""
    random = np.random.default_rng(3)
    q, v = random.standard_normal((5, 3)), 0.1 * random.standard_normal((5, 3))
    masses = np.array([1.0, 0.0, 0.5, 0.0, 0.25])
    for loop in LOOPS:
        whole = run(masses, (q, v), 3, loop=loop, h=1e-3)
        heavy = run(masses[masses > 0], (q[masses > 0], v[masses > 0]), 3, loop=loop, h=1e-3)
        assert np.array_equal(whole.ys[-1][masses > 0], heavy.ys[-1])


@pytest.mark.parametrize("masses, G", [((0.0, 0.0, 0.0), 1.0), ((1.0, 2.0, 3.0), 0.0)])
@pytest.mark.parametrize("loop", LOOPS)
def test_nobody_pulls(masses, G, loop):
    q, v = satellites(2, 2)
    solution = ode.integrate(NBody(masses, G=G, space=2), (q, v), scheme="verlet", h=0.25, steps=8, loop=loop)
    assert np.array_equal(solution.ys[-1], q + 2.0 * v) and np.isfinite(solution.energy).all()


def gradient(masses, y0):
    q, v = (torch.tensor(x) for x in y0)
    q.requires_grad_()
    run(masses, (q, v), 2, scheme="verlet", steps=20).ys[-1].sum().backward()
    return q.grad


@pytest.mark.parametrize("many", [2, 4])
def test_gradients_are_those_of_the_particles_alone(many):
    found, alone = (
        gradient((1.0,) + (0.0,) * many, satellites(2, many)),
        gradient((1.0, 0.0), satellites(2, 1)),
    )
    assert bool(torch.isfinite(found).all()) and bool((alone[1] != 0).all())
    for k in range(1, many + 1):
        assert torch.equal(found[k], alone[1])
    nobody = gradient((0.0,) * (many + 1), satellites(2, many))
    assert torch.equal(nobody, torch.ones_like(nobody))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("masses", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_at_the_place_of_a_body_with_mass_is_a_singularity(masses, loop):
    with (
        np.errstate(all="ignore"),
        pytest.raises(revstep.StateOverflowError, match=r"step 0.*look for a singularity"),
    ):
        run(masses, (np.zeros((2, 2)), np.zeros((2, 2))), 2, loop=loop)
