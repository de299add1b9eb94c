"""What the tests of sharded training share: a model around a stack, its data, and 20 steps of training by one
process or by each of two.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import revstep
from revstep.schemes import available
from revstep_lab.verify import example_blocks

WIDTH, LAYERS, BATCH, TIME, STEPS = 16, 8, 2, 5, 20


class Model(nn.Module):
    """in -> stack -> out, so that the root of the shards has weights of its own."""

    def __init__(
        self,
        scheme: str = "blend",
        layers: int = LAYERS,
        dropout: float = 0.1,
        blocks: list | None = None,
        **options: Any,
    ):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        made = available()[scheme](**{"leapfrog": {"h": 0.5}, "bdia": {"seed": 1}}.get(scheme, {}))
        self.stack = revstep.ReversibleStack(
            example_blocks(layers, WIDTH, dropout) if blocks is None else blocks, made, **options
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.stack(self.first(x)))


def functions(stack: revstep.ReversibleStack) -> list[nn.Module]:
    """The modules a stack calls."""
    return [
        half for block in stack.blocks for half in (block.halves() if stack.scheme.halves == 2 else (block,))
    ]


def shard(model: nn.Module, modules: list[nn.Module] | None = None, **options: Any) -> nn.Module:
    """``fully_shard`` on each module that the stack calls, then on the model."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in functions(model.stack) if modules is None else modules:
        fully_shard(module, mesh=mesh, **options)
    # The root's own weights stay whole from forward to backward by default.
    options.pop("reshard_after_forward", None)
    return fully_shard(model, mesh=mesh, **options)


def batch(step: int, half: int) -> tuple[Tensor, Tensor]:
    """Input and target of one half of a step's batch."""
    x, y = torch.randn(2, BATCH, TIME, WIDTH, generator=torch.Generator().manual_seed(10 * step + half))
    return x, y


def backward(
    model: nn.Module, step: int, half: int, share: float = 1.0, context: Callable = contextlib.nullcontext
) -> float:
    """Forward and backward of one half, with random numbers of its own; returns the loss. The report must say
    exact.
    """
    torch.manual_seed(1000 * step + half)
    x, y = batch(step, half)
    with context():
        loss = (model(x).float() - y).square().mean()
    (loss * share).backward()
    report = model.stack.report
    if model.stack.keep != len(model.stack.blocks):
        assert (
            report.exact
            and report.matched == report.layers == (LAYERS - model.stack.keep) * model.stack.scheme.halves
        ), report
    return float(loss.detach())


def optimiser(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


def train(
    model: nn.Module,
    halves: tuple[int, ...],
    steps: range = range(STEPS),
    opt: torch.optim.Optimizer | None = None,
    clip: float | None = None,
):
    """Steps over these halves, whose gradients are averaged (by the engine, where each process has one).
    Returns the losses, step by step.
    """
    opt = optimiser(model) if opt is None else opt
    losses = []
    for step in steps:
        losses.append([backward(model, step, half, 1.0 / len(halves)) for half in halves])
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            losses[-1].append(float(norm.full_tensor() if isinstance(norm, DTensor) else norm))
        opt.step()
        opt.zero_grad()
    return losses


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p) for name, p in model.named_parameters()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose tensors differ in any bit, or are missing on one side."""
    return sorted(
        n
        for n in a.keys() | b.keys()
        if n not in a or n not in b or a[n].dtype != b[n].dtype or not torch.equal(a[n], b[n])
    )


@contextlib.contextmanager
def collectives() -> Iterator[dict[str, list[int]]]:
    """Sizes of the gathers and reductions that start in the meantime."""
    found: dict[str, list[int]] = {"gather": [], "reduce": []}
    own = {"gather": dist.all_gather_single, "reduce": dist.reduce_scatter_single}

    def counted(kind: str) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            tensor = kwargs.get("input_tensor", kwargs.get("input", args[1] if len(args) > 1 else None))
            found[kind].append(tensor.numel())
            return own[kind](*args, **kwargs)

        return call

    dist.all_gather_single, dist.reduce_scatter_single = counted("gather"), counted("reduce")
    try:
        yield found
    finally:
        dist.all_gather_single, dist.reduce_scatter_single = own["gather"], own["reduce"]


def gathered(stack: revstep.ReversibleStack) -> list[int]:
    """Indices of the stack's functions whose weights are whole at this moment."""
    return [
        k for k, f in enumerate(functions(stack)) if not any(isinstance(p, DTensor) for p in f.parameters())
    ]
