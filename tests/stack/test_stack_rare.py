"""Paths of a stack that other tests pass by."""

import json

import pytest
import torch
from torch import nn

import revstep
from revstep.stack import _arguments


def test_a_report_is_plain_values():
    blocks = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    stack = revstep.ReversibleStack(blocks, revstep.Midpoint())
    stack(torch.randn(2, 8, requires_grad=True)).sum().backward()
    report = stack.report
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
