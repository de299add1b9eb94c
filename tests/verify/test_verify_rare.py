"""Paths of the checks that other tests pass by."""

import pytest
import torch
from torch import nn

import revstep
from revstep import ConfigError, verify
from revstep.verify.blockcheck import _behaviour, _load


class Cut(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x).detach()


def test_a_block_without_a_graph():
    found = _behaviour._differentiable(Cut, torch.randn(2, 8))
    assert not found.ok and found.result.why == "the output has no graph"
    assert "detach()" in " ".join(found.advice)


def test_bits_of_other_tensors():
    a = torch.tensor([1.0, float("nan")])
    assert _behaviour.same_bits(a, a.clone()) and not _behaviour.same_bits(a, a.double())
    assert not _behaviour.same_bits(a, a[:1]) and not _behaviour.same_bits(a, a.view(torch.int32))


@pytest.mark.parametrize("text", ["**{}", "x", "1 +"])
def test_arguments_that_are_no_literals(text):
    with pytest.raises(ConfigError, match="expected arguments as in a call"):
        _load.parse_arguments(text)


def test_a_step_that_is_the_residual_one():
    """BDIA in evaluation mode: the stored recurrence that gradients are compared with has alpha = 0."""
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    stack = revstep.ReversibleStack(blocks, revstep.BDIA(seed=0)).eval()
    assert verify.gradients(stack, torch.randn(2, 8)).ok


class Deaf(nn.Module):
    """Its output has a graph, in which its input is not."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(torch.ones(x.shape))


def test_a_block_that_ignores_its_input():
    found = _behaviour._differentiable(Deaf, torch.randn(2, 8))
    assert not found.ok and found.result.why == "no gradient reaches the input"
