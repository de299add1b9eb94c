"""Ways back run under what the run was taken under: grad mode, inference mode, autocast, switches, caches."""

import contextlib

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations, parametrize

import revstep
from revstep import ode
from revstep.ode import _gradient


def _attention():
    torch.manual_seed(0)
    net = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    return (lambda t, y: net(y)), torch.randn(2, 5, 8), net


class Half(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(8, 8)

    def forward(self, t, y):
        return torch.tanh(self.lin(y)).float()


SETTINGS = {
    "as it is": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad and autocast": lambda: _both(torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16)),
    "math attention": lambda: sdpa_kernel(SDPBackend.MATH),
    "default dtype": lambda: _default_dtype(),
    "cached parametrizations": parametrize.cached,
}


@contextlib.contextmanager
def _both(a, b):
    with a, b:
        yield


@contextlib.contextmanager
def _default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


FIELDS = {
    "attention": lambda: _attention()[:2],
    "linear": lambda: (Half(), torch.randn(4, 8, generator=torch.Generator().manual_seed(1))),
    "function": lambda: (
        (lambda net: lambda t, y: net(t, y))(Half()),
        torch.randn(4, 8, generator=torch.Generator().manual_seed(1)),
    ),
    "dtype": lambda: (
        (lambda t, y: torch.sin(y * torch.tensor(0.1).to(y.dtype))),
        torch.randn(4, generator=torch.Generator().manual_seed(1)),
    ),
}


PAIRS = [("as it is", there) for there in SETTINGS]
PAIRS += [(here, "as it is") for here in SETTINGS if here != "as it is"]
PAIRS += [
    ("no_grad", "autocast"),
    ("autocast", "inference"),
    ("inference", "autocast"),
    ("math attention", "no_grad"),
]


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("here, there", PAIRS)
def test_reverse_is_exact_wherever_it_is_called(here, there, field):
    f, y0 = FIELDS[field]()
    q0 = (y0, torch.zeros_like(y0))
    with SETTINGS[here]():
        first = ode.integrate(f, y0, scheme="midpoint", h=0.02, steps=6)
        second = ode.integrate(ode.SecondOrder(f), q0, scheme="leapfrog", h=0.02, steps=6, save_every=3)
    with SETTINGS[there]():
        for run in (first, second):
            back = run.reverse()
            assert back.exact and torch.equal(back.ys.detach().flip(0), run.ys.detach())
            assert run is first or torch.equal(back.velocities.detach().flip(0), run.velocities.detach())


RECORDED = [p for p in PAIRS if p[0] not in ("no_grad", "inference", "no_grad and autocast")]


@pytest.mark.parametrize("here, there", RECORDED)
def test_backward_is_right_wherever_it_is_called(here, there):
    """The gradient is the one of a backward pass in place; states that are not the run's would raise."""
    for name in ("attention", "function"):
        f, y0 = FIELDS[name]()
        y0.requires_grad_()
        grads = []
        for inside in (True, False):
            with SETTINGS[here]():
                run = ode.integrate(f, y0, scheme="verlet", h=0.02, steps=6)
                loss = run.ys[-1].square().sum()
                if inside:
                    grads.append(torch.autograd.grad(loss, y0)[0])
            if not inside:
                with SETTINGS[there]():
                    grads.append(torch.autograd.grad(loss, y0)[0])
        assert torch.equal(*grads)


def test_ways_back_under_what_is_in_force_now_are_rejected(monkeypatch):
    f, y0 = FIELDS["attention"]()
    g, z0 = FIELDS["linear"]()
    with torch.no_grad():
        run = ode.integrate(f, y0, scheme="midpoint", h=0.02, steps=6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ode.integrate(g, z0, scheme="midpoint", h=0.02, steps=6)
    monkeypatch.setattr(_gradient.Surroundings, "again", lambda self: contextlib.nullcontext())
    monkeypatch.setattr(_gradient.Surroundings, "grad_enabled", True)
    assert not cast.reverse().exact
    with torch.enable_grad():
        assert not run.reverse().exact


def test_caches_of_weights_are_not_used_across_evaluations(monkeypatch):
    """A weight that autocast or cached() keeps has the graph of the evaluation that made it."""
    net = parametrizations.orthogonal(nn.Linear(4, 4))
    y0 = torch.randn(2, 4)

    def run(scheme):
        net.zero_grad()
        with parametrize.cached(), torch.autocast("cpu", dtype=torch.bfloat16):
            net(y0)
            found = ode.integrate(lambda t, y: torch.tanh(net(y)).float(), y0, scheme=scheme, h=0.05, steps=5)
            net(y0)
        found.ys[-1].sum().backward()
        return [p.grad for p in net.parameters()]

    for scheme in ("midpoint", "verlet", "reversible_rk4"):
        assert all(g.isfinite().all() and g.any() for g in run(scheme))
    assert torch.is_autocast_cache_enabled() and not parametrize._cache_enabled
    monkeypatch.setattr(_gradient, "_without_caches", lambda stack: None)
    with pytest.raises(revstep.UnsupportedError, match="computed with gradients before this evaluation"):
        run("midpoint")


def test_all_is_as_it_was_afterwards():
    f, y0 = FIELDS["attention"]()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        run = ode.integrate(f, y0, scheme="midpoint", h=0.02, steps=3)
    before = (
        [s.read() for s in _gradient.Switches.__init__.__globals__["SWITCHES"]],
        torch.is_grad_enabled(),
    )
    run.reverse()
    assert before == (
        [s.read() for s in _gradient.Switches.__init__.__globals__["SWITCHES"]],
        torch.is_grad_enabled(),
    )
    assert not torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()
