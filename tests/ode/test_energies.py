"""Fields from energies: any start, constant energies, energies with parameters, under every grad mode."""

import numpy as np
import ode_cases as cases
import pytest
import torch
from torch import nn

import revstep
from revstep import ode
from revstep.ode import _equations


def _t(*values):
    return torch.tensor(values, dtype=torch.float64)


def _kinetic(p):
    return p**2 / 20


CONSTANT = {
    "zeros": torch.zeros_like,
    "zeros without a graph": lambda q: torch.zeros(q.shape, dtype=q.dtype),
    "one zero": lambda q: torch.zeros(()),
    "0 * q": lambda q: 0 * q,
    "a number": lambda q: 0.0,
    "an integer": lambda q: 3,
    "NumPy's number": lambda q: np.float64(2.0),
    "a parameter alone": lambda q: nn.Parameter(_t(2.0)) * torch.ones_like(q),
    "an integer tensor": lambda q: torch.ones(q.shape, dtype=torch.int64),
    "a wall that is not reached": lambda q: (q - 9) ** 2 if bool((q > 9).any()) else torch.zeros_like(q),
}


@pytest.mark.parametrize("start", ["torch", "numpy", "float32", "gradient"])
@pytest.mark.parametrize("energy", CONSTANT)
@pytest.mark.parametrize("scheme", ["verlet", "blanes_moan4", "hamiltonian"])
def test_constant_energies_have_no_force(scheme, energy, start):
    """A free particle of mass 10: q = t/10, to the rounding of 50 steps of at most 13 additions each."""
    q, p = _t(0.0), _t(1.0)
    if start == "numpy":
        q, p = q.numpy(), p.numpy()
    if start == "float32":
        q, p = q.float(), p.float()
    if start == "gradient":
        q, p = q.requires_grad_(), p.requires_grad_()
    run = ode.integrate(ode.FromEnergies(_kinetic, CONSTANT[energy]), (q, p), scheme=scheme, h=0.02, steps=50)
    bound = 1e-5 if start == "float32" else 1e-13
    assert abs(float(run.ys[-1][0]) - 0.1) <= bound and float(run.momenta[-1][0]) == 1.0
    energy_of = run.energy.reshape(2, -1)
    assert abs(energy_of[0, 0] - energy_of[1, 0]) < 1e-6
    assert run.reverse().exact
    if start == "gradient":
        run.ys[-1].sum().backward()
        assert q.grad == 1.0 and abs(p.grad - 0.1) < 1e-13


def test_constant_kinetic_energy_freezes_q():
    run = ode.integrate(
        ode.FromEnergies(torch.zeros_like, lambda q: q**2 / 2),
        (_t(0.5), _t(1.0)),
        scheme="verlet",
        h=0.01,
        steps=100,
    )
    assert run.ys[-1] == 0.5 and abs(run.momenta[-1] - 0.5) < 1e-13


HIDDEN = {
    "item": lambda q: float((q**2).sum()),
    "detach": lambda q: q.detach() ** 2,
    "numpy": lambda q: torch.from_numpy(np.cos(q.detach().numpy())),
    "numpy, of a number": lambda q: np.cos(q.detach().numpy()).sum(),
    "no_grad": torch.no_grad()(lambda q: q**2),
}


@pytest.mark.parametrize("start", [_t, np.array])
@pytest.mark.parametrize("energy", HIDDEN)
def test_an_energy_that_hides_its_argument_is_refused(energy, start):
    y0 = (_t(0.3), _t(1.0)) if start is _t else (np.array([0.3]), np.array([1.0]))
    with pytest.raises(revstep.ConfigError, match=r"V changes with its argument.*without item"):
        ode.integrate(ode.FromEnergies(_kinetic, HIDDEN[energy]), y0, scheme="verlet", h=0.01, steps=5)


def test_taking_a_hidden_argument_for_a_constant_is_rejected(monkeypatch):
    monkeypatch.setattr(_equations, "_check_constant", lambda *_: None)
    field = ode.FromEnergies(_kinetic, HIDDEN["item"])
    run = ode.integrate(field, (_t(0.3), _t(1.0)), scheme="verlet", h=0.01, steps=5)
    assert run.momenta[-1] == 1.0  # the wrong number that the check is there for


def test_a_wall_is_felt_where_it_begins():
    """Free up to q = 1, then a spring: the branch without a graph is no hidden energy."""
    wall = lambda q: 50 * (q - 1) ** 2 if float(q.detach()) > 1 else torch.zeros_like(q)  # noqa: E731
    field = ode.FromEnergies(lambda p: p**2 / 2, wall)
    run = ode.integrate(field, (_t(0.0), _t(1.0)), scheme="verlet", h=4e-3, steps=500)
    assert abs(run.momenta[-1] + 1) < 1e-2 and run.reverse().exact


@pytest.mark.parametrize(
    "value, message",
    [
        (lambda q: None, "V returned NoneType"),
        (lambda q: q + 0j, "complex128"),
        (lambda q: np.cos(q), "handed its argument to NumPy"),
        (lambda q: "x", "V returned str"),
    ],
)
def test_what_is_no_energy_is_refused(value, message):
    with pytest.raises(revstep.ConfigError, match=message):
        ode.integrate(
            ode.FromEnergies(_kinetic, value),
            (np.array([0.3]), np.array([1.0])),
            scheme="verlet",
            h=0.01,
            steps=5,
        )
    with pytest.raises(revstep.ConfigError, match="V is float, expected a function"):
        ode.FromEnergies(_kinetic, 1.0)


def test_numpy_starts_give_numpy_results_with_the_same_bits():
    well = ode.FromEnergies(lambda p: (p**2).sum(-1) / 2, lambda q: ((q**2 - 1) ** 2).sum(-1))
    q, p = (x.numpy() for x in cases.tensors())
    a = ode.integrate(well, (q, p), scheme="blanes_moan4", h=0.01, steps=20, save_every=5)
    b = ode.integrate(
        well,
        (torch.from_numpy(q), torch.from_numpy(p)),
        scheme="blanes_moan4",
        h=0.01,
        steps=20,
        save_every=5,
    )
    assert all(isinstance(x, np.ndarray) for x in (a.ts, a.ys, a.momenta, a.energy)) and a.energy.shape == (
        5,
        4,
    )
    assert np.array_equal(a.ys, b.ys.numpy()) and np.array_equal(a.energy, b.energy.numpy())
    assert a.energy[0] == pytest.approx(a.energy[-1], abs=1e-4)


# ---- networks as energies ----


class Potential(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = cases.network(width=2)

    def forward(self, q):
        return self.net(q).sum(-1) + (q * q).sum(-1) / 2


def _wanted(potential, q, p, steps=20, h=0.05):
    """Stored autograd through Verlet."""
    force = lambda x: -torch.autograd.grad(potential(x).sum(), x, create_graph=True)[0]  # noqa: E731
    x = q.detach().requires_grad_()
    at, v = x, p
    for _ in range(steps):
        at = at + h / 2 * v
        v = v + h * force(at)
        at = at + h / 2 * v
    return torch.autograd.grad(at.sum(), [x, *potential.parameters()], allow_unused=True)


@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize("way", ["module", "function", "method"])
def test_a_network_as_energy_is_trained(way, differentiated):
    """To the rounding of the grid against plain floats: 20 steps, three roundings of 2**-54 each."""
    potential, (q, p) = Potential(), cases.tensors(2, (3, 2))
    energy = {"module": potential, "function": lambda q: potential(q), "method": potential.forward}[way]
    leaves = [*potential.parameters()]
    wanted = _wanted(potential, q, p)
    if differentiated:
        leaves.insert(0, q.requires_grad_())
    field = ode.FromEnergies(lambda p: (p * p).sum(-1) / 2, energy)
    run = ode.integrate(field, (q, p), scheme="verlet", h=0.05, steps=20)
    got = torch.autograd.grad(run.ys[-1].sum(), leaves, allow_unused=True)
    for a, b in zip(got, wanted if differentiated else wanted[1:]):
        assert (a is None) == (b is None)
        assert a is None or float((a - b).abs().max()) <= 1e-13 * max(1.0, float(b.abs().max()))


def test_every_grad_mode_gives_the_same_bits():
    potential, (q, p) = Potential(), cases.tensors(2, (3, 2))
    field = ode.FromEnergies(lambda p: (p * p).sum(-1) / 2, potential)
    runs = {}
    for name, mode in {
        "grad": torch.enable_grad,
        "no_grad": torch.no_grad,
        "inference": torch.inference_mode,
    }.items():
        with mode():
            runs[name] = ode.integrate(field, (q, p), scheme="blanes_moan4", h=0.05, steps=10)
        assert runs[name].reverse().exact
    assert all(torch.equal(r.ys.detach(), runs["grad"].ys.detach()) for r in runs.values())
    assert [r.ys.requires_grad for r in runs.values()] == [True, False, False]
    for parameter in potential.parameters():
        parameter.requires_grad_(False)
    frozen = ode.integrate(field, (q, p), scheme="blanes_moan4", h=0.05, steps=10)
    assert torch.equal(frozen.ys, runs["no_grad"].ys) and frozen.reverse().exact
    assert not frozen.ys.requires_grad
