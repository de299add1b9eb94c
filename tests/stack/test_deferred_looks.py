"""Fingerprints that a device still computes: nothing waits for them before the end of the
pass, and then they are compared.
"""

import pytest
import torch
from stacks import batch, run, same, stack
from test_saved import CASES, Gated, backward, gated, rows
from torch import nn

import revstep
from revstep import ops
from revstep.stack import _audit, _saved, _tape, rebuilding


@pytest.fixture
def deferred(monkeypatch):
    """Numbers come as tensors, as they do from a device; ``read`` counts those that somebody waited for."""
    read, real, compared = [], ops.fingerprint, ops.differs

    class Pending(torch.Tensor):
        def tolist(self):
            read.append(self.shape)
            return self.as_subclass(torch.Tensor).tolist()

        def __int__(self):
            raise AssertionError("waited for a single number")

        __bool__ = __int__

    def pending(value):
        return torch.tensor(value).as_subclass(Pending)

    monkeypatch.setattr(_saved, "fingerprint", lambda *args: pending(real(*args)))
    monkeypatch.setattr(_audit.ops, "differs", lambda *args: pending(compared(*args)))
    init = _audit.Audit.__init__

    def deferring(self, fmt, halves, checks, immediate, publish):
        init(self, fmt, halves, checks, False, publish)

    monkeypatch.setattr(_audit.Audit, "__init__", deferring)
    return read


@pytest.mark.parametrize("name", ["blend", "bdia", "hamiltonian"])
@pytest.mark.parametrize(
    "options", [{}, {"save_ops": "attention"}, {"keep": 1}], ids=["plain", "save_ops", "keep"]
)
def test_one_wait_a_pass_and_the_same_gradients(name, options, deferred):
    results = [run(stack(name, 3, **options), batch()) for _ in range(2)]
    assert len(deferred) == 2 and same(*results)
    assert same(results[0], run(stack(name, 3, keep=3), batch()))


@pytest.mark.parametrize("case", [c for c in CASES if "step" not in c])
def test_differences_are_found_at_the_end(case, deferred, monkeypatch):
    module = gated()
    text = r"layer \d, evaluated again in backward: saved tensor \d+"
    with pytest.raises(revstep.ReconstructionError, match=text) as caught:
        backward(case, module, monkeypatch)
    assert caught.value.layer in range(3) and module.report is None


def test_auxiliary_tensors_too(deferred, monkeypatch):
    module = gated(beside=True)
    _, aux = module(rows())
    monkeypatch.setattr(Gated, "noise", 1.0)
    with pytest.raises(revstep.ReconstructionError):
        sum(a for (a,) in aux).backward()


def test_numbers_nobody_compares_pass(deferred, monkeypatch):
    """The mutant: what was deferred is forgotten."""
    monkeypatch.setattr(_audit.Audit, "_compare_later", lambda self: None)
    module = gated()
    backward("an attribute", module, monkeypatch)
    assert module.report.exact


def test_a_generator_record_that_changed(deferred, monkeypatch):
    """It is kept to evaluate a block again that draws random numbers."""
    module, tapes = stack("blend", 3, dropout=0.5), []
    finish = _tape.Tape.finish
    monkeypatch.setattr(_tape.Tape, "finish", lambda self: (tapes.append(self), finish(self))[1])
    loss = module(batch()).sum()
    record = tapes[0].records[1]
    record.copies[0] = record.copies[0] + 1
    text = r"layer 1, evaluated again in backward: what is kept of it for backward has other values"
    with pytest.raises(revstep.ReconstructionError, match=text):
        loss.backward()


def test_a_rebuilt_state_that_somebody_writes_to(deferred):
    rebuilt = []

    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(32, 32)

        def forward(self, x):
            y = self.map(x)
            if rebuilding():
                rebuilt.append(x)
            elif y.requires_grad:
                y.register_hook(write)
            return 0.1 * y.tanh()

    def write(g):
        rebuilt[-1].data.add_(1.0)  # which torch's counter of versions does not see

    module = stack("blend", blocks=[Writes() for _ in range(3)])
    text = r"layer 2: \d+ value\(s\) of its input were changed between"
    with pytest.raises(revstep.ReconstructionError, match=text):
        module(batch()).sum().backward()
