"""On devices where reading a number waits for the device, statistics are read once a pass; the same verdicts
must come out.
"""

import pytest
import torch
from stacks import SCHEMES, batch, run, same, stack
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import revstep
from revstep.stack._audit import Audit


@pytest.fixture(autouse=True)
def _deferred(monkeypatch):
    original = Audit.__init__

    def init(self, fmt, halves, checks, immediate, publish):
        original(self, fmt, halves, checks, False, publish)

    monkeypatch.setattr(Audit, "__init__", init)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("state", ["fixed32", "float32"])
def test_same_gradients_and_report(name, state, monkeypatch):
    deferred = stack(name, 5, state)
    ours = run(deferred, batch())
    monkeypatch.undo()
    immediate = stack(name, 5, state)
    assert same(ours, run(immediate, batch())) and str(deferred.report) == str(immediate.report)


@pytest.mark.parametrize("layer", [0, 3])
def test_the_lowest_layer_that_went_wrong_first_is_named(layer):
    module = stack("blend", 5, dropout=0.0)
    loss = module(batch()).sum()
    with torch.no_grad():
        module.blocks[layer].mlp.up.weight.mul_(1.01)
    with pytest.raises(revstep.ReconstructionError, match=f"layer {layer}") as caught:
        loss.backward()
    assert caught.value.layer == layer


def test_partial_backward_is_checked_too():
    module = stack("blend", 5, dropout=0.0)
    loss = module(batch()).sum()
    with torch.no_grad():
        module.blocks[3].mlp.up.weight.mul_(1.01)
    with pytest.raises(revstep.ReconstructionError, match="layer 3"):
        torch.autograd.grad(loss, list(module.blocks[2].parameters()))


def test_overflow_is_raised_at_the_end_of_forward():
    module = stack("midpoint", 5, dropout=0.0)
    with torch.no_grad():
        module.blocks[1].mlp.down.bias.fill_(5000.0)
    with pytest.raises(revstep.StateOverflowError, match="layer 1"):
        module(batch())


def test_poison_is_known_at_the_end_of_forward():
    module = stack("midpoint", 3, dropout=0.0, state=revstep.FixedPoint(on_nonfinite="propagate"))
    with torch.no_grad():
        module.blocks[1].mlp.down.bias.fill_(5000.0)
    assert module(batch()).isnan().all()


def test_states_that_came_back_changed_are_named():
    module = stack("blend", 5, dropout=0.0)
    with pytest.raises(revstep.ReconstructionError, match="kept for backward, was changed"):
        run(module, batch(), context=lambda: saved_tensors_hooks(lambda t: t // 2, lambda t: t * 2))


class _Numbers(TorchDispatchMode):
    """Counts the single numbers that are read from tensors: on a CUDA device each one waits for all kernels
    queued before it.
    """

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


def _reads(name, monkeypatch):
    """Times that a forward and a backward pass wait for numbers: one by one, or as a table of statistics
    (``tolist`` is no operator).
    """
    tables, read = [], revstep.ops.read_stats
    monkeypatch.setattr(revstep.ops, "read_stats", lambda stats: tables.append(stats) or read(stats))
    module, counts = stack(name, 5, dropout=0.0), []
    with _Numbers() as numbers:
        y = module(batch())
    counts.append(numbers.count + len(tables))
    with _Numbers() as numbers:
        y.backward(torch.ones_like(y))
    assert module.report.exact
    return counts[0], numbers.count + len(tables) - counts[0]


@pytest.mark.parametrize("name", SCHEMES)
def test_one_read_in_forward_and_one_in_backward(name, monkeypatch):
    assert _reads(name, monkeypatch) == (1, 1)


def test_the_count_of_reads_sees_those_of_each_layer(monkeypatch):
    # As on the CPU: each number is looked at as it comes, of 7 states, of the 2 kept and of the 5 rebuilt
    monkeypatch.undo()
    assert _reads("midpoint", monkeypatch) == (7, 2 + 5)
