"""What a pass or a run leaves behind goes when it is let go: no circle of references keeps states alive until
Python looks for circles.
"""

import gc
import weakref

import pytest
import torch
from torch import nn

import revstep
from revstep import ode
from revstep.ode import _loop
from revstep.stack import _audit, _run, _tape


@pytest.fixture
def made(monkeypatch):
    """Weak references to what is made of these classes; Python looks for no circles meanwhile."""
    found = []

    def watch(cls):
        init = cls.__init__

        def remember(self, *args, **kwargs):
            found.append(weakref.ref(self))
            init(self, *args, **kwargs)

        monkeypatch.setattr(cls, "__init__", remember)

    for cls in (_run.Pass, _tape.Tape, _audit.Audit, _loop.Walker):
        watch(cls)
    gc.collect()
    gc.disable()
    yield found
    gc.enable()


def kinds(found):
    """Of what is alive."""
    return {type(alive).__name__ for ref in found if (alive := ref()) is not None}


@pytest.mark.parametrize("keep", [0, 1])
def test_a_pass_of_a_stack(made, keep):
    stack = revstep.ReversibleStack([nn.Linear(4, 4) for _ in range(3)], revstep.Blend(), keep=keep)
    # The first pass looks at what blocks keep outside of autograd, with frames in hand.
    stack(torch.randn(2, 4)).sum().backward()
    gc.collect()
    made.clear()
    y = stack(torch.randn(2, 4))
    assert "Tape" in kinds(made)
    y.sum().backward()
    del y
    assert kinds(made) == set() and len(made) == 3


def test_an_integration(made):
    v = torch.tensor([0.0, 1.1], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.9, 0.0], dtype=torch.float64)
    solution = ode.integrate(lambda t, q: -q / q.norm() ** 3, (q, v), scheme="verlet", h=0.01, steps=5)
    solution.ys[-1].sum().backward()
    assert solution.reverse().exact and v.grad.abs().sum() > 0
    del solution
    assert kinds(made) == set() and made


def test_a_circle_is_found(made):
    """The mutant: an audit that its own ledger knows."""
    stack = revstep.ReversibleStack([nn.Linear(4, 4)], revstep.Blend())
    stack(torch.randn(2, 4)).sum().backward()
    gc.collect()
    seen = _audit.Audit.wrote

    def circular(self, stats):
        self.circle = self
        seen(self, stats)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_audit.Audit, "wrote", circular)
        stack(torch.randn(2, 4)).sum().backward()
    assert kinds(made) == {"Audit"}
