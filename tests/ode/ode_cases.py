"""What the tests of revstep.ode share: every method with every equation it serves, fields with parameters,
states.
"""

import torch

import revstep
from revstep import ode

METHODS = ode.available()
CASES = [(name, equation) for name, method in METHODS.items() for equation in method.equations]
STATES = {
    "default": None,
    "fixed64": revstep.FixedPoint(64, 40),
    "fixed32": revstep.FixedPoint(32, 24),
    "float64": revstep.Float(torch.float64),
}
EXACT = [name for name in STATES if name != "float64"]


def tensors(count=2, shape=(4, 3), seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=g, dtype=torch.float64).to(dtype) for _ in range(count)]


def network(seed=0, width=3, dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.Tanh(), torch.nn.Linear(8, width)).to(
            dtype
        )


class Driven(torch.nn.Module):
    """A small network times a function of time and an argument."""

    def __init__(self, seed=0):
        super().__init__()
        self.net = network(seed)

    def forward(self, t, x, w=1.0):
        return self.net(x) * torch.cos(t) * w


def problem(equation, y, first=None, second=None):
    """``(field, y0)`` of an equation kind from two tensors and two functions."""
    first, second = first or Driven(0), second or Driven(1)
    return {
        "first": (first, y[0]),
        "second": (ode.SecondOrder(first), tuple(y)),
        "separable": (ode.Separable(first, second), tuple(y)),
    }[equation]
