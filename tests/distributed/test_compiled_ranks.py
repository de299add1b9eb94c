"""Compiled stacks under DDP and FSDP2: what uncompiled ones compute on the same ranks, to the bit."""

import sys
from pathlib import Path

import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "stack"))

import stacks

BACKEND = "aot_eager"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.stack, self.head = (
            nn.Linear(8, 32),
            stacks.stack(layers=3, dropout=0.1),
            nn.Linear(32, 8),
        )

    def forward(self, x):
        return self.head(self.stack(self.enter(x)))


def step(call, model, rank):
    """Loss, every gradient whole, and the report, of a step on this rank's rows."""
    x = torch.randn(2, 2, 9, 8, generator=torch.Generator().manual_seed(1))[rank]
    model.zero_grad(set_to_none=True)
    torch.manual_seed(rank)
    loss = call(x).square().mean()
    loss.backward()
    grads = [
        p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad.clone() for p in model.parameters()
    ]
    return [loss.detach(), *grads], model.stack.report


def ddp(rank, opaque):
    from torch._dynamo.utils import counters
    from torch.nn.parallel import DistributedDataParallel

    torch._dynamo.reset()
    counters.clear()
    model = Model()
    model.stack.opaque = opaque
    wrapped = DistributedDataParallel(model)
    plain, report = step(wrapped, model, rank)
    call = torch.compile(wrapped, backend=BACKEND)
    compiled = [step(call, model, rank) for _ in range(2)]
    return (
        all(stacks.same(plain, ours) and seen == report for ours, seen in compiled),
        report.exact,
        counters["stats"]["unique_graphs"],
    )


def fsdp(rank, whole):
    from torch._dynamo.utils import counters
    from torch.distributed.fsdp import fully_shard

    def sharded(model):
        for block in model.stack.blocks:
            fully_shard(block)
        return fully_shard(model)

    torch._dynamo.reset()
    counters.clear()
    model = sharded(Model())
    plain, _ = step(model, model, rank)
    if whole:
        call = torch.compile(model, backend=BACKEND)
    else:
        model.stack.compile(backend=BACKEND)
        call = model
    (first, report), (second, _) = (step(call, model, rank) for _ in range(2))
    # Compiled blocks sum in another order: at most 1000 roundings in three layers.
    bound = 1000 * torch.finfo(torch.float32).eps
    near = all(float((a - b).norm()) <= bound * float(b.norm()) for a, b in zip(first, plain))
    return near, stacks.same(first, second), report.exact, counters["stats"]["unique_graphs"]


def test_ddp_compiled_whole(ranks):
    """As one operator, all gradients of the stack arrive at its end; outside of the graph, layer by layer.
    The sums are the same.
    """
    assert ranks(ddp, True) == [(True, True, 1)] * 2
    assert ranks(ddp, False) == [(True, True, 2)] * 2


def test_fsdp2_with_compiled_blocks(ranks):
    assert ranks(fsdp, False) == [(True, True, True, 1)] * 2


def test_fsdp2_compiled_whole_breaks_the_graph_at_the_stack(ranks):
    """Sharded weights are gathered by hooks, which no graph can hold."""
    near, same, exact, graphs = zip(*ranks(fsdp, True))
    assert all(near) and all(same) and all(exact) and set(graphs) == {2}
