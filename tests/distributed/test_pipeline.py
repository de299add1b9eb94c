"""Pipelines of stages that hold a stack each, on two gloo processes, under torch's own schedules."""

from __future__ import annotations

import pytest
import sharding
import torch
from sharding import WIDTH, differing, gradients
from torch import Tensor, nn
from torch.distributed import pipelining
from torch.distributed.pipelining import PipelineStage

import revstep
from revstep.schemes import available
from revstep_lab.verify import example_blocks

ROWS, MICRO, TIME, LAYERS = 8, 4, 5, 8


class Stage(nn.Module):
    """Layers ``k * 8 / n`` to ``(k + 1) * 8 / n`` of one network; the states between two stages are the pair.
    ``broken``: the last state alone.
    """

    def __init__(self, scheme: str, k: int, n: int, broken: bool = False):
        super().__init__()
        torch.manual_seed(0)
        first, last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.first, self.last, self.broken = first if k == 0 else None, last if k == n - 1 else None, broken
        made = available()[scheme](**{"leapfrog": {"h": 0.5}, "bdia": {"seed": 1}}.get(scheme, {}))
        blocks = example_blocks(LAYERS, WIDTH, dropout=0.0)[k * LAYERS // n : (k + 1) * LAYERS // n]
        self.stack = revstep.ReversibleStack(blocks, made, readout="pair" if self.last is None else "last")

    def forward(self, *x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.first(x[0]) if self.first is not None else x[1] if self.broken else x
        return self.stack(x) if self.last is None else self.last(self.stack(x))


def _loss(y: Tensor, target: Tensor) -> Tensor:
    return (y - target).square().mean()


def _data() -> tuple[Tensor, Tensor]:
    x, target = torch.randn(2, ROWS, TIME, WIDTH, generator=torch.Generator().manual_seed(0))
    return x, target


def _alone(scheme: str, n: int) -> tuple[list[float], list[dict]]:
    """The stages one after the other in one process, gradients of the micro-batches added up."""
    stages, losses = [Stage(scheme, k, n) for k in range(n)], []
    for x, target in zip(*(t.chunk(MICRO) for t in _data())):
        y = (x,)
        for stage in stages:
            y = stage(*y)
        loss = _loss(y, target)
        (loss / MICRO).backward()
        losses.append(float(loss.detach()))
    return losses, [gradients(stage) for stage in stages]


def _piped(
    rank: int, schedule: str, scheme: str, n: int, broken: bool = False
) -> tuple[list[float], list[dict], list[bool], int]:
    """Losses (on the last stage's process), gradients of this process's stages, their reports, and the
    evaluations of its last stage's blocks.
    """
    x, target = _data()
    outside = torch.zeros(ROWS // MICRO, TIME, WIDTH)
    # States need gradients: torch learns from these examples what to send back.
    inside = outside.clone().requires_grad_()
    modules, stages, evaluations = {}, [], []
    for k in range(rank, n, 2):
        modules[k] = Stage(scheme, k, n, broken)
        examples = {
            "input_args": (outside,) if k == 0 else (inside, inside),
            "output_args": inside if k == n - 1 else (inside, inside),
        }
        stages.append(PipelineStage(modules[k], k, n, torch.device("cpu"), **examples))
    for function in sharding.functions(modules[k].stack):
        function.register_forward_pre_hook(lambda *_: evaluations.append(1))
    losses: list[Tensor] = []
    kind = getattr(pipelining, schedule)
    runner = kind(
        stages if issubclass(kind, pipelining.schedules.PipelineScheduleMulti) else stages[0],
        MICRO,
        loss_fn=_loss,
    )
    runner.step(
        *([x] if rank == 0 else []), **({"target": target, "losses": losses} if n - 1 in modules else {})
    )
    return (
        [float(loss.detach()) for loss in losses],
        [gradients(m) for m in modules.values()],
        [m.stack.report.exact for m in modules.values()],
        len(evaluations),
    )


CASES = [("ScheduleGPipe", 2), ("Schedule1F1B", 2), ("ScheduleInterleaved1F1B", 4)]


def _agree(answers: list, expected: tuple, n: int) -> bool:
    losses, grads = expected
    found = [answers[k % 2][1][k // 2] for k in range(n)]
    return answers[1][0] == losses and not any(differing(a, b) for a, b in zip(found, grads, strict=True))


@pytest.mark.parametrize("scheme", ["blend", "bdia", "hamiltonian", "leapfrog"])
def test_schedules_give_what_the_stages_give_in_one_process(ranks, scheme):
    """Losses and gradients to the bit; several forward passes wait for their backward at a time, each with
    its own record.
    """
    for schedule, n in CASES if scheme == "blend" else CASES[1:2]:
        answers = ranks(_piped, schedule, scheme, n)
        assert _agree(answers, _alone(scheme, n), n), schedule
        assert all(all(exact) for _, _, exact, _ in answers)
        # Once forwards, once backwards.
        assert answers[1][3] == 2 * MICRO * LAYERS // n * available()[scheme].halves


def test_what_that_comparison_rejects(ranks):
    """A second stage that is given the last state in place of the pair."""
    assert not _agree(ranks(_piped, "Schedule1F1B", "blend", 2, True), _alone("blend", 2), 2)


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_stages_are_the_whole_network(scheme):
    """Losses to the bit: states on the grid 2**-20 below 16 in size pass from stage to stage in float32
    without loss.
    """
    assert _alone(scheme, 1)[0] == _alone(scheme, 2)[0] == _alone(scheme, 4)[0]


def test_zero_bubble_on_the_last_stage(ranks):
    """Weights' gradients apart from inputs': right where the output is still there, but each weight's pass
    rebuilds states anew.
    """
    answers = ranks(_piped, "ScheduleInterleavedZeroBubble", "blend", 2)
    assert _agree(answers, _alone("blend", 2), 2)
    assert answers[1][3] > 4 * MICRO * LAYERS // 2


def test_weights_gradients_after_the_output_is_gone_are_refused_by_name():
    """What a zero-bubble schedule does on every other stage: gradients of inputs first, then, with the output
    let go, those of weights.
    """
    stage, edges = Stage("blend", 0, 2), []
    for block in stage.stack.blocks:
        block.mlp.up.register_forward_hook(
            lambda _, __, y: (
                edges.append(torch.autograd.graph.get_gradient_edge(y)) if y.requires_grad else None
            )
        )
    x = _data()[0].requires_grad_()
    y = stage(x)
    torch.autograd.grad(y, x, [torch.ones_like(t) for t in y], retain_graph=True)
    mine, weight = edges[1], stage.stack.blocks[1].mlp.up.weight
    edges.clear()
    ones = torch.ones(ROWS, TIME, 4 * WIDTH)
    (kept,) = torch.autograd.grad(mine, weight, ones, retain_graph=True)  # with the output still there
    assert kept.abs().sum() > 0
    del y
    with pytest.raises(RuntimeError, match=r"zero bubble\) let it go: use 1F1B or GPipe"):
        torch.autograd.grad(mine, weight, ones)
