"""What the tests of DDP share: a model around a stack, and its training by one process over the halves of a
batch or by each of two over its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

import revstep
from revstep.schemes import available
from revstep_lab.verify import example_blocks

WIDTH, LAYERS, BATCH, TIME, STEPS = 16, 8, 2, 5, 20
#: Blocks that the paper's Leapfrog keeps in range.
OPTIONS = {"leapfrog": {"h": 0.5}}

#: Options of DDP that must not change a bit.
MODES: dict[str, dict[str, Any]] = {
    "default": {},
    "unused": {"find_unused_parameters": True},
    "static": {"static_graph": True},
    "views": {"gradient_as_bucket_view": True},
    "small buckets": {"bucket_cap_mb": 0.001},
}


class Model(nn.Module):
    """in -> stack -> out, as a model has weights around its trunk."""

    def __init__(
        self,
        scheme: Any = "blend",
        blocks: Sequence[nn.Module] | None = None,
        dropout: float = 0.1,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ):
        super().__init__()
        torch.manual_seed(0)
        made = available()[scheme](**OPTIONS.get(scheme, {})) if isinstance(scheme, str) else scheme
        self.first, self.last = nn.Linear(WIDTH, WIDTH, dtype=dtype), nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.stack = revstep.ReversibleStack(
            example_blocks(LAYERS, WIDTH, dropout, dtype=dtype) if blocks is None else blocks, made, **options
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.stack(self.first(x)))


def inner(model: nn.Module) -> Model:
    return model.module if isinstance(model, DDP) else model


def batch(step: int, halves: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Input and target of these halves of a step's batch, joined."""
    drawn = [
        torch.randn(
            2, BATCH, TIME, WIDTH, generator=torch.Generator().manual_seed(10 * step + half), dtype=dtype
        )
        for half in halves
    ]
    return torch.cat([d[0] for d in drawn]), torch.cat([d[1] for d in drawn])


def loss_of(
    model: nn.Module, step: int, halves: Sequence[int], context: Callable = contextlib.nullcontext
) -> Tensor:
    """The mean loss of these halves in one forward pass, with random numbers that the step and the first half
    decide.
    """
    torch.manual_seed(1000 * step + halves[0])
    x, y = batch(step, halves, inner(model).first.weight.dtype)
    with context():
        return (model(x).to(y.dtype) - y).square().mean()


def exact(model: nn.Module) -> bool:
    """Whether the report says that every state not kept was rebuilt exactly."""
    stack, report = inner(model).stack, inner(model).stack.report
    return report.exact and report.matched == report.layers == (LAYERS - report.kept) * stack.scheme.halves


def train(
    model: nn.Module,
    passes: Sequence[Sequence[int]],
    steps: int = STEPS,
    context: Callable = contextlib.nullcontext,
    clip: float | None = None,
) -> tuple[list, dict]:
    """Steps of AdamW; each averages the gradients of these passes, each pass over these halves. Returns
    losses (and norms) and the weights.
    """
    opt, found = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1), []
    for step in range(steps):
        losses = []
        for halves in passes:
            loss = loss_of(model, step, halves, context)
            (loss / len(passes)).backward()
            assert exact(model), inner(model).stack.report
            losses.append(float(loss.detach()))
        norm = [] if clip is None else [float(nn.utils.clip_grad_norm_(model.parameters(), clip))]
        opt.step()
        opt.zero_grad()
        found.append((losses, norm))
    return found, weights(model)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in inner(model).named_parameters()}


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in inner(model).named_parameters() if p.grad is not None}


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Names whose tensors differ in any bit, or are missing on one side."""
    return sorted(
        n
        for n in a.keys() | b.keys()
        if n not in a or n not in b or a[n].dtype != b[n].dtype or not torch.equal(a[n], b[n])
    )


def average(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the gradients of two ranks, as DDP forms it: each halved (exactly), then added."""
    return {name: a[name] / 2 + b[name] / 2 for name in a}
