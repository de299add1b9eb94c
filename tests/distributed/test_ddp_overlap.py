"""Gradients leave for the other rank layer by layer while backward still runs, and not all at its end."""

from __future__ import annotations

import time

import ddp_training as ddp
import pytest
import torch
from ddp_training import DDP, LAYERS, Model
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

#: Half a layer's parameters, in MiB: no bucket spans two layers.
SMALL = 0.005


class AllAtOnce(nn.Module):
    """The stack as one autograd Function, which computes all gradients before it returns any: what the stack must not be."""

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


def _traced(rank: int, scheme: str, options: dict, broken: bool = False, steps: int = 3) -> list[tuple]:
    """(event, number, seconds) of the last step's backward: ``evaluate`` a function, ``reduce`` a bucket, ``reduced``, ``gradient`` of a function's first weight."""
    model = Model(scheme)
    functions = model.stack._functions()
    events: list[tuple] = []
    since = [0.0]

    def note(event: str, number: int) -> None:
        events.append((event, number, time.perf_counter() - since[0]))

    for k, function in enumerate(functions):
        function.register_forward_pre_hook(lambda *_, k=k: note("evaluate", k))
        next(function.parameters()).register_post_accumulate_grad_hook(lambda *_, k=k: note("gradient", k))
    if broken:
        model.stack = AllAtOnce(model.stack)

    def hook(group, bucket):
        number = bucket.index()
        note("reduce", number)
        future = allreduce_hook(group, bucket)

        def done(finished):
            note("reduced", number)
            return finished.value()

        return future.then(done)

    sharded = DDP(model, **options)
    sharded.register_comm_hook(None, hook)
    for step in range(steps):
        loss = ddp.loss_of(sharded, step, (rank,))
        events.clear()
        since[0] = time.perf_counter()
        loss.backward()
    return events


def _complaints(events: list[tuple], functions: int) -> list[str]:
    order = [(event, number) for event, number, _ in events]
    evaluated = [number for event, number in order if event == "evaluate"]
    reduced = [number for event, number in order if event == "reduce"]
    wrong = [] if evaluated == [*reversed(range(functions))] else [f"evaluated {evaluated}"]
    if reduced != [*range(len(reduced))] or len(reduced) < functions or sum(event == "reduced" for event, _ in order) != len(reduced):
        wrong.append(f"buckets {reduced}")
    began = len(order) - 1 - order[::-1].index(("evaluate", 0))  # backward through the first function begins with its evaluation
    if order.index(("reduce", 0)) > began:
        wrong.append("no bucket on its way before the last layer that backward reaches")
    for k in range(1, functions):
        if order.index(("gradient", k)) > order.index(("evaluate", k - 1)):
            wrong.append(f"no gradient of {k} before {k - 1} is evaluated")
    early = sum(event == "reduce" for event, _ in order[:began])
    if early < len(reduced) * (functions - 2) / functions:
        wrong.append(f"{early} of {len(reduced)} buckets on their way before the last layer that backward reaches")
    return wrong


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
@pytest.mark.parametrize("options", [{}, {"find_unused_parameters": True}, {"static_graph": True}], ids=lambda options: next(iter(options), "default"))
def test_buckets_leave_while_backward_runs(ranks, scheme, options):
    """The sequence of a later step, when DDP has ordered its buckets as gradients came in the first."""
    functions = LAYERS * (2 if scheme == "hamiltonian" else 1)
    for events in ranks(_traced, scheme, {"bucket_cap_mb": SMALL, **options}):
        assert _complaints(events, functions) == []


def test_what_that_sequence_rejects(ranks):
    """All gradients at the end of backward; one bucket for all."""
    for events in ranks(_traced, "blend", {"bucket_cap_mb": SMALL}, True):
        assert (
            any("no bucket" in wrong for wrong in _complaints(events, LAYERS))
            and sum("no gradient" in wrong for wrong in _complaints(events, LAYERS)) == LAYERS - 1
        )
    for events in ranks(_traced, "blend", {}):
        assert any("no bucket" in wrong for wrong in _complaints(events, LAYERS))
