"""What a function reads: the same while nothing changed, another after each kind of change, and refused where
a change could not be seen.
"""

import functools
import types

import numpy as np
import pytest
import torch
from torch import nn

from revstep.ode._signature import Opaque, signature

FACTOR = 2.0
SETTINGS = types.SimpleNamespace(power=2, names=["a"])


def _helper(y):
    return y * FACTOR


def by_global(t, y):
    return _helper(y) ** SETTINGS.power


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.factor, self.options = nn.Linear(2, 2), 1.0, {"depth": 1}

    def forward(self, t, y):
        return self.layer(y) * self.factor * FACTOR


def _change(name, value):
    def change(monkeypatch, net):
        monkeypatch.setitem(globals(), name, value)

    return change


CHANGES = {
    "an attribute": lambda m, net: setattr(net, "factor", 2.0),
    "a sign of zero": lambda m, net: setattr(net, "factor", -0.0),
    "a type": lambda m, net: setattr(net, "factor", 1),
    "an entry": lambda m, net: net.options.update(depth=2),
    "a weight": lambda m, net: setattr(net.layer, "weight", nn.Parameter(torch.ones(2, 2))),
    "what requires a gradient": lambda m, net: net.layer.bias.requires_grad_(False),
    "a hook": lambda m, net: net.layer.register_forward_pre_hook(lambda *a: None),
    "the mode": lambda m, net: net.eval(),
    "a global": _change("FACTOR", 3.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_seen(monkeypatch, change):
    net = Net()
    before = signature(net)
    assert before == signature(net) and hash(before) == hash(signature(net))
    with torch.no_grad():
        net.layer.weight.add_(1.0)  # values are read anew
    assert before == signature(net)
    CHANGES[change](monkeypatch, net)
    assert before != signature(net)


def test_functions_of_functions(monkeypatch):
    before = signature(by_global)
    assert before == signature(by_global)
    monkeypatch.setitem(globals(), "FACTOR", 5.0)
    middle = signature(by_global)
    monkeypatch.setattr(SETTINGS, "power", 3)
    assert len({before, middle, signature(by_global)}) == 3
    assert signature(functools.partial(by_global, 1.0)) != signature(functools.partial(by_global, 2.0))

    def made(value, key=1):
        return lambda t, y, k=key: y * value * k

    assert signature(made(1.0)) == signature(made(1.0)) != signature(made(2.0))
    assert signature(made(1.0)) != signature(made(1.0, key=2))
    assert signature(Net().forward) != signature(Net().forward)  # of two modules


@pytest.mark.parametrize("value", [np.ones(2), iter([1]), np.random.default_rng(0), list(range(5000))])
def test_what_cannot_be_seen_is_refused(value):
    with pytest.raises(Opaque):
        signature(lambda t, y: y * value)


def test_a_signature_that_reads_less_would_miss_it(monkeypatch):
    from revstep.ode import _signature

    monkeypatch.setattr(_signature._Reader, "_function", lambda self, f: self.found.append(id(f.__code__)))
    before = signature(by_global)
    monkeypatch.setitem(globals(), "FACTOR", 7.0)
    assert before == signature(by_global)
