"""Two bodies (m = 1 and 0.001, e = 0.1, dt = 0.001), a million steps there and a million back, in the
compiled loop.
"""

import math

import numpy as np
import pytest
import torch

import revstep
from revstep import ode

STEPS, LOOK_EVERY, ENERGY_HELD = 1_000_000, 1000, 1e-12


def _there_and_back(scheme, state=None):
    """What went wrong, as a set of words: nothing for an exact integration of order 6."""
    masses, e = (1.0, 1e-3), 0.1
    total = sum(masses)
    share = np.array([[-masses[1] / total], [masses[0] / total]])
    start = share * [1 - e, 0.0, 0.0], share * [0.0, math.sqrt(total * (1 + e) / (1 - e)), 0.0]
    run = ode.integrate(
        ode.fields.NBody(masses),
        start,
        scheme=scheme,
        h=1e-3,
        steps=STEPS,
        state=state,
        save_every=LOOK_EVERY,
        loop="compiled",
    )
    back = run.reverse()
    assert run.stats.loop == back.stats.loop == "compiled" and run.energy.shape == (STEPS // LOOK_EVERY + 1,)
    moved = np.abs(np.diff(run.ys, axis=0)).max()
    assert moved > 0.5, "the bodies did not move"
    wrong = set()
    if not all(torch.equal(a.view(torch.int64), b.view(torch.int64)) for a, b in zip(run.start, back.final)):
        wrong.add("start")
    if not np.max(np.abs(run.energy / run.energy[0] - 1)) <= ENERGY_HELD:
        wrong.add("energy")
    return wrong


@pytest.mark.slow
def test_a_million_steps_and_a_million_back():
    assert _there_and_back("kahan_li6") == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheme, state, wrong",
    [("kahan_li6", revstep.Float(torch.float64), {"start"}), ("verlet", None, {"energy"})],
)
def test_rejected(scheme, state, wrong):
    """float64 states do not come back bit for bit; the energy of verlet swings by h**2 / 20 = 5e-8."""
    assert _there_and_back(scheme, state) == wrong
