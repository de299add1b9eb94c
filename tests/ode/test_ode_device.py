"""Equations on a CUDA device that is not there (tests/fake_device.py): the bits of the CPU, and no number
that is written on the host for every evaluation, at which the host would wait.
"""

import pytest
import torch

from fake_device import FakeDevice, on
from revstep.ode import _problem, integrate


def field(t, y):
    return torch.stack([y[..., 1], -torch.sin(y[..., 0]) + 0.1 * torch.cos(t)], -1)


def waits(steps, fake=None, **options):
    y0 = torch.tensor([[0.3, -0.2], [1.0, 0.1]], dtype=torch.float64)
    before = 0 if fake is None else fake.count("waiting")
    found = integrate(field, y0 if fake is None else on(y0), h=0.05, steps=steps, **options)
    return found.ys.as_subclass(torch.Tensor)[-1], 0 if fake is None else fake.count("waiting") - before


@pytest.mark.parametrize("scheme", ["reversible_rk4", "midpoint"])
def test_no_wait_grows_with_the_steps(scheme):
    expected, _ = waits(40, scheme=scheme)
    with FakeDevice() as fake:
        _, first = waits(10, fake, scheme=scheme)
        found, second = waits(40, fake, scheme=scheme)
    assert torch.equal(found, expected)
    assert first == second, f"{second - first} more waits in 30 more steps"


def test_a_time_that_is_written_on_the_host_is_seen(monkeypatch):
    def written(device, x, dtype=torch.float64):
        return torch.tensor(x, dtype=dtype, device=device)

    monkeypatch.setattr("revstep.ode._loop.scalar_on", written)
    assert _problem.scalar_on is not written
    with FakeDevice() as fake:
        assert waits(40, fake)[1] >= waits(10, fake)[1] + 30
