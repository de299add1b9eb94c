"""What a run must not lose without a word: derivatives, imaginary parts, whole members, the order of
arguments, digits of the clock, and what a recorded field reads.
"""

import pickle
import types

import numpy as np
import pytest
import torch
import torch.autograd.forward_ad as fw
from torch import nn

from revstep import ConfigError, ode
from revstep.errors import UnsupportedError
from revstep.ode import _integrate, _signature
from revstep.ode._functions import CFUNCTYPE

D = torch.float64


@CFUNCTYPE
def decay(t, x, out, n, user):
    for i in range(n):
        out[i] = -x[i]


# ---- C functions without a Python twin ----


def test_a_c_function_has_no_derivative_and_no_complex_values():
    alone = ode.CompiledField(decay, equation="first", dim=1)
    both = ode.CompiledField(decay, equation="first", dim=1, python=lambda t, y: -y)
    run = {"h": 0.01, "t_span": (0, 1)}
    y0 = torch.ones(1, dtype=D, requires_grad=True)
    with pytest.raises(UnsupportedError, match=r"has no derivative: .*python=f"):
        ode.integrate(alone, y0, **run).ys[-1].sum().backward()
    with pytest.raises(UnsupportedError, match=r"has no complex values: .*python=f"):
        ode.integrate(alone, np.array([1j]), **run)
    ode.integrate(both, y0, **run).ys[-1].sum().backward()
    assert y0.grad == pytest.approx(np.exp(-1), rel=1e-4)
    assert ode.integrate(both, np.array([1j]), **run).ys[-1] == pytest.approx(1j * np.exp(-1), rel=1e-4)
    with torch.no_grad():
        assert ode.integrate(alone, torch.ones(1), **run).ys[-1] == pytest.approx(np.exp(-1), rel=1e-4)


# ---- complex members ----


def grows(t, y):
    out = np.empty_like(y)
    out[..., 0], out[..., 1] = y[..., 0] ** 2, y[..., 0]
    return out


def test_a_complex_member_is_dropped_whole():
    y0 = np.array([[0.1, 0.0], [1.0, 0.0]])
    real, both = (
        ode.integrate(grows, y0.astype(kind), h=0.01, t_span=(0, 1.5), on_failure="drop")
        for kind in (float, complex)
    )
    assert both.failed == real.failed == {(1,): 99}
    assert np.isnan(both.ys[-1][1]).all() and np.array_equal(both.ys[-1][0].real, real.ys[-1][0])
    assert both.reverse().exact
    with pytest.raises(ConfigError, match="is a single system"):
        ode.integrate(grows, y0[1].astype(complex), h=0.01, t_span=(0, 1.5), on_failure="drop")


def test_nothing_goes_on_from_a_dropped_member():
    def field(t, y):
        return y * y - 1

    run = ode.integrate(field, np.array([[0.1], [3.0]]), h=0.01, t_span=(0, 1.0), on_failure="drop")
    final = pickle.loads(pickle.dumps(run.final))
    for start in (run.final, final):
        with pytest.raises(ConfigError, match="dropped 1 of its members"):
            ode.integrate(field, start=start, steps=50, on_failure="drop")
    whole = ode.integrate(field, np.array([[0.1]]), h=0.01, t_span=(0, 1.0), on_failure="drop")
    assert not ode.integrate(field, start=whole.final, steps=5).failed


# ---- the clock ----


def slowed(t, y):
    return -y * (1 + t)


@pytest.mark.parametrize("what", ["h", "t0", "t1"])
def test_times_that_are_given_stay_while_the_clock_is_differentiated(what):
    """Against central differences of the same call; with steps that moved under them it is another number."""

    def value(x):
        options = {"h": 0.1, "t0": 0.0, "steps": 10, "t_eval": [0.55]}
        if what == "t1":
            options = {"steps": 10, "t_span": (0.0, x), "t_eval": [0.55]}
        else:
            options[what] = x
        return ode.integrate(slowed, torch.ones(1, dtype=D), **options).ys.sum()

    at = {"h": 0.1, "t0": 0.0, "t1": 1.0}[what]
    x = torch.tensor(at, dtype=D, requires_grad=True)
    value(x).backward()
    numeric = float(value(at + 1e-5) - value(at - 1e-5)) / 2e-5
    assert float(x.grad) == pytest.approx(numeric, abs=1e-6)


def test_the_end_moves_the_steps_also_where_h_is_given():
    grads = []
    for options in ({"h": 0.1}, {"steps": 10}):
        end = torch.tensor(1.0, dtype=D, requires_grad=True)
        ode.integrate(slowed, torch.ones(1, dtype=D), **options, t_span=(0.0, end)).ys[-1].sum().backward()
        grads.append(float(end.grad))
    assert grads[0] == pytest.approx(grads[1]) and grads[0] < -0.1


@pytest.mark.parametrize("scheme", ["kahan_li6", "leapfrog"])
@pytest.mark.parametrize("name", ["h", "t0"])
def test_a_clock_that_is_differentiated_has_the_same_digits(scheme, name):
    def field(t, x):
        return -torch.sin(x) + torch.cos(5 * t)

    start = torch.tensor([0.3], dtype=D), torch.tensor([0.1], dtype=D)
    given = {"h": 0.125, "t0": 2.0**20} | {"scheme": scheme, "steps": 300, "t_eval": [2.0**20 + 33.333]}
    plain = ode.integrate(field, start, **given)
    clock = torch.tensor(given[name]).requires_grad_()  # float32, which holds the number itself
    moved = ode.integrate(field, start, **given | {name: clock})
    assert torch.equal(plain.ys, moved.ys) and torch.equal(plain.velocities, moved.velocities)


def test_a_step_size_of_one_element_is_a_number():
    h = torch.tensor([0.1], requires_grad=True)
    run = ode.integrate(lambda t, x: -x, torch.tensor(1.0), h=h, steps=5, t_eval=[0.25, 0.3])
    assert run.ys.shape == (2,) and run.ys.dtype == torch.float32


def test_a_field_is_not_asked_outside_of_its_interval():
    asked = []

    def field(t, y):
        asked.append(float(t))
        return -y

    run = {"h": 0.1, "t_span": (0.0, 0.3), "t_eval": [0.05, 0.25]}  # three steps end at 0.30000000000000004
    ode.integrate(ode.FirstOrder(field, interval=(0.0, 0.3)), [1.0], **run)
    assert max(asked) <= 0.3 and min(asked) >= 0.0


# ---- the order of a module's arguments ----


class Exchanged(nn.Module):
    def forward(self, x, t):
        return -x + torch.sin(t)


def test_a_module_with_its_arguments_exchanged_is_refused():
    for module in (Exchanged(), torch.compile(Exchanged(), backend="eager")):
        with pytest.raises(ConfigError, match=r"the field is f\(x, t\)"):
            ode.integrate(module, torch.ones(2, dtype=D), h=0.01, steps=2)


# ---- transforms ----


def test_forward_mode_and_transforms_are_refused(monkeypatch):
    y = torch.ones(2, dtype=D)

    def run(y):
        return ode.integrate(lambda t, y: -y, y, h=0.1, steps=5).ys[-1]

    with fw.dual_level(), pytest.raises(UnsupportedError, match="forward mode"):
        run(fw.make_dual(y, y))
    for transform in (torch.func.grad(lambda y: run(y).sum()), torch.func.vmap(run), torch.func.jacrev(run)):
        with pytest.raises(UnsupportedError, match=r"torch\.func"):
            transform(y)
    monkeypatch.setattr(_integrate, "_refuse_transforms", lambda *_: None)  # the mutant loses the tangent
    with fw.dual_level():
        assert fw.unpack_dual(run(fw.make_dual(y, y))).tangent is None


# ---- shapes and bits ----


def test_shapes_are_looked_at_in_every_loop():
    four = torch.ones(4), torch.ones(4)
    with pytest.raises(ConfigError, match=r"shape \(4,\), expected \(2,\) or \(3,\)"):
        ode.integrate(ode.fields.Kepler(), four, h=0.1, steps=2)
    with pytest.raises(ConfigError, match=r"expected \(2,\)"):
        ode.integrate(ode.fields.VanDerPol(), torch.ones(3), h=0.1, steps=2)


def test_a_start_that_is_a_view_with_another_sign():
    z = torch.tensor([1 + 2j])
    found = ode.integrate(lambda t, y: -y, z.conj().imag, h=0.1, steps=2).ys[-1]
    assert torch.equal(found, ode.integrate(lambda t, y: -y, torch.tensor([-2.0]), h=0.1, steps=2).ys[-1])


# ---- what a recorded field reads ----

settings = types.ModuleType("settings")


class Switched(nn.Module):
    on = 0.5

    @property
    def until(self):
        return settings.until

    def forward(self, t, y):
        return torch.where((t < self.on) & (t < self.until), -y, y)


@pytest.mark.parametrize("change", [(Switched, "on"), (settings, "until")], ids=["class", "module"])
def test_a_record_is_made_again_after_a_change_of_a_class_or_a_module(change, monkeypatch):
    settings.until = 0.75
    monkeypatch.setattr(Switched, "on", 0.5)
    field, y = Switched(), torch.ones(2, dtype=D)

    def run(loop):
        return ode.integrate(field, y, h=0.05, steps=20, scheme="kahan_li6", loop=loop)

    first = run("captured")
    assert first.stats.loop == "captured"
    setattr(*change, 0.2)
    assert torch.equal(run("captured").ys, run("python").ys)
    assert not torch.equal(first.ys, run("captured").ys)
    setattr(*change, 0.3)
    monkeypatch.setattr(_signature._Reader, "_values", lambda *_: None)  # the mutant uses an old record
    before = run("captured").ys
    setattr(*change, 0.1)
    assert torch.equal(run("captured").ys, before) and not torch.equal(before, run("python").ys)
