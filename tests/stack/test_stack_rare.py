"""Paths of a stack and of what measures it that other tests pass by."""

import json

import pytest
import torch
from torch import nn

import revstep
from revstep import ConfigError, verify
from revstep.plan import _modes
from revstep.stack import _arguments
from revstep.verify.blockcheck import _behaviour, _load


def trained(**options):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    stack = revstep.ReversibleStack(blocks, revstep.Midpoint(), **options)
    stack(torch.randn(2, 8, requires_grad=True)).sum().backward()
    return stack


def test_a_report_is_plain_values():
    report = trained().report
    found = json.loads(json.dumps(report.to_dict()))
    assert found["exact"] is True and found["matched"] == found["layers"] == 3
    assert type(report)(**found) == report


@pytest.mark.parametrize(
    "error, memory",
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("x"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 3 bytes"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("a shape"), False),
    ],
)
def test_errors_that_say_nothing_about_a_block(error, memory):
    assert _arguments.out_of_memory(error) is memory


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
    assert not _behaviour.same_bits(a, a[:1])


@pytest.mark.parametrize("text", ["**{}", "x", "1 +"])
def test_arguments_that_are_no_literals(text):
    with pytest.raises(ConfigError):
        _load.parse_arguments(text)


@pytest.mark.parametrize("change", [{"optimizer": "sgdm"}, {"engine": "deep"}, {"world": 0}, {"world": True}])
def test_a_plan_of_nothing_known(change):
    asked = {"optimizer": "adamw", "world": 1, "engine": "ddp"} | change
    with pytest.raises(ConfigError, match="|".join(change)):
        _modes.static(None, **asked)


def test_a_step_that_is_the_residual_one():
    """BDIA in evaluation mode: the stored recurrence that gradients are compared with has alpha = 0."""
    blocks = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    stack = revstep.ReversibleStack(blocks, revstep.BDIA(seed=0)).eval()
    assert verify.gradients(stack, torch.randn(2, 8)).ok
