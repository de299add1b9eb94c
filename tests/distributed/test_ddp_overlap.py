"""Gradients leave for the other rank layer by layer while backward still runs, and not all at its end."""

from __future__ import annotations

import ddp_training as ddp
import pytest
import torch
from ddp_trace import SMALL, complaints, traced
from ddp_training import LAYERS, Model
from torch import nn


class AllAtOnce(nn.Module):
    """The stack as one autograd Function, which computes all gradients before it returns any: what the stack
    must not be.
    """

    def __init__(self, stack: nn.Module):
        super().__init__()
        self.stack = stack

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _AllAtOnce.apply(self.stack, x, *self.stack.parameters())


class _AllAtOnce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, stack, x, *parameters):
        ctx.stack, ctx.generator = stack, torch.get_rng_state()
        ctx.save_for_backward(x)
        return stack(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        torch.set_rng_state(ctx.generator)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = ctx.stack(x)
        return None, *torch.autograd.grad(y, [x, *ctx.stack.parameters()], g)


def _traced(rank: int, scheme: str, options: dict, broken: bool = False) -> list[tuple]:
    model = Model(scheme)
    functions = model.stack._functions()
    if broken:
        model.stack = AllAtOnce(model.stack)
    return traced(model, functions, lambda engine, step: ddp.loss_of(engine, step, (rank,)), options)


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
@pytest.mark.parametrize(
    "options",
    [{}, {"find_unused_parameters": True}, {"static_graph": True}],
    ids=lambda options: next(iter(options), "default"),
)
def test_buckets_leave_while_backward_runs(ranks, scheme, options):
    """The sequence of a later step, when DDP has ordered its buckets as gradients came in the first."""
    functions = LAYERS * (2 if scheme == "hamiltonian" else 1)
    for events in ranks(_traced, scheme, {"bucket_cap_mb": SMALL, **options}):
        assert complaints(events, functions) == []


def test_what_that_sequence_rejects(ranks):
    """All gradients at the end of backward; one bucket for all."""
    for events in ranks(_traced, "blend", {"bucket_cap_mb": SMALL}, True):
        assert (
            any("no bucket" in wrong for wrong in complaints(events, LAYERS))
            and sum("no gradient" in wrong for wrong in complaints(events, LAYERS)) == LAYERS - 1
        )
    for events in ranks(_traced, "blend", {}):
        assert any("no bucket" in wrong for wrong in complaints(events, LAYERS))
