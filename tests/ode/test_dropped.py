"""Members of a batch that fail: named, and dropped on request, the others being what they are
without them.
"""

import numpy as np
import pytest
import torch

import revstep
from revstep import ode
from revstep.ode import _loop

#: Escapes from the potential well of Henon and Heiles.
BAD = 6


def ensemble(count=9, bad=(BAD,)):
    rng = np.random.default_rng(1)
    q, p = 0.1 * rng.standard_normal((count, 2)), 0.1 * rng.standard_normal((count, 2))
    for member in bad:
        q[member], p[member] = [1.5, 1.5], [1.0, 1.0]
    return q, p


def run(y0, loop="compiled", field=None, **options):
    options = {
        "scheme": "kahan_li6",
        "h": 0.05,
        "steps": 120,
        "save_every": 40,
        "scale": 1.0,
        "loop": loop,
        **options,
    }
    with np.errstate(all="ignore"):
        return ode.integrate(field or ode.fields.HenonHeiles(), y0, **options)


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_the_member_that_fails_is_named(loop):
    with pytest.raises(revstep.StateOverflowError, match=rf"component \({BAD}, \d\)"):
        run(ensemble(), loop)


@pytest.mark.parametrize("state", [None, revstep.FixedPoint(64, 50), revstep.Float(torch.float64)], ids=str)
@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_the_others_are_what_they_are_alone(loop, state):
    found = run(ensemble(bad=(2, BAD)), loop, on_failure="drop", state=state)
    assert set(found.failed) == {(2,), (BAD,)} and all(0 < step < 120 for step in found.failed.values())
    well = [k for k in range(9) if k not in (2, BAD)]
    alone = run(tuple(x[well] for x in ensemble(bad=(2, BAD))), loop, state=state)
    assert np.array_equal(found.ys[:, well], alone.ys) and np.array_equal(
        found.momenta[:, well], alone.momenta
    )
    assert np.isnan(found.ys[:, [2, BAD]]).all()
    back = found.reverse()
    assert back.exact == (state is None or state.exact) and np.isnan(back.ys[:, [2, BAD]]).all()
    assert np.allclose(back.ys[:, well], found.ys[::-1][:, well], atol=1e-9)
    assert "members failed" in found.summary() or "failed" in repr(found)


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_all_fail_or_none_does(loop):
    everybody = run(ensemble(3, (0, 1, 2)), loop, on_failure="drop")
    assert len(everybody.failed) == 3 and np.isnan(everybody.ys).all() and everybody.reverse().exact
    nobody = run(ensemble(3, ()), loop, on_failure="drop")
    plain = run(ensemble(3, ()), loop)
    assert not nobody.failed and np.array_equal(nobody.ys, plain.ys)


@pytest.mark.parametrize("name", ["reversible_rk4", "blend", "verlet", "midpoint"])
def test_every_kind_of_method_drops(name):
    """y' = y**2 blows up at t = 1/y0; with carries, two copies and two steps."""
    y0 = np.array([[0.1], [4.0], [0.2]])
    field = lambda t, y: y * y  # noqa: E731
    try:
        found = run(y0, "python", field, scheme=name, on_failure="drop", h=0.01, steps=100)
    except revstep.ParasiticModeError:  # the copies of the member that blows up come apart first
        assert name in ("reversible_rk4", "verlet")
        return
    assert list(found.failed) == [(1,)] and found.reverse().exact
    assert np.allclose(found.ys[-1, [0, 2], 0], [0.1 / 0.9, 0.2 / 0.8], atol=1e-2)


def test_a_member_that_is_left_in_spoils_the_run(monkeypatch):
    """The mutant: nothing is taken out, and the run ends."""
    monkeypatch.setattr(_loop.Members, "fail", lambda self, *_: False)
    with pytest.raises(revstep.StateOverflowError):
        run(ensemble(), "python", on_failure="drop")


def test_what_cannot_be_dropped_is_refused():
    with pytest.raises(revstep.ConfigError, match="is a single system"):
        run((np.ones(2), np.zeros(2)), "python", on_failure="drop")
    with pytest.raises(revstep.ConfigError, match="expected one of"):
        run(ensemble(), on_failure="skip")
    y0 = torch.tensor([[0.1], [0.2]], dtype=torch.float64, requires_grad=True)
    with pytest.raises(revstep.ConfigError, match="gives no gradients"):
        ode.integrate(lambda t, y: -y, y0, h=0.1, steps=3, on_failure="drop")
