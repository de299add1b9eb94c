"""One step under DDP in many ways: accumulation, frozen and unused layers, kept graphs, values out of range,
an error on a rank.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re

import ddp_training as ddp
import pytest
import ranks as processes
import torch
from ddp_training import DDP, LAYERS, MODES, Model
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

import revstep
from revstep_lab.verify import example_blocks


def _counted(model: DDP) -> list[int]:
    """Fills with the index of every bucket that leaves from now on."""
    sent: list[int] = []

    def hook(group, bucket):
        sent.append(bucket.index())
        return allreduce_hook(group, bucket)

    model.register_comm_hook(None, hook)
    return sent


def _step(model: nn.Module, rank: int, step: int = 0) -> dict:
    model.zero_grad()
    loss = ddp.loss_of(model, step, (rank,))
    loss.backward()
    return {"loss": loss.detach(), **ddp.gradients(model)}


def _averaged(*halves: dict) -> dict:
    """Gradients of the ranks' own passes as DDP averages them; a rank that did not use a weight counts as
    zero.
    """
    names = {name for half in halves for name in half} - {"loss"}
    return {name: sum(half[name] / 2 for half in halves if name in half) for name in names}


def _gradients(answer: dict) -> dict:
    return {name: g for name, g in answer.items() if name != "loss"}


# ---- accumulation ----


def _accumulated(rank: int, modes: tuple[str, ...], held: tuple[bool, bool]) -> list[tuple]:
    found = []
    for mode in modes:
        model = DDP(Model(), **MODES[mode])
        sent, counts = _counted(model), []
        if mode == "static":  # which learns the graph in a first step of its own
            _step(model, rank)
            model.zero_grad()
        for micro, hold in enumerate(held):
            sent.clear()
            with model.no_sync() if hold else contextlib.nullcontext():
                (ddp.loss_of(model, micro, (rank,)) / 2).backward()
            assert ddp.exact(model)
            counts.append(len(sent))
        found.append((ddp.gradients(model), counts))
    return found


def test_gradient_accumulation(ranks):
    """no_sync holds the first micro-batch's gradients back; each bucket leaves once, with the sum, right to
    the bit.
    """
    sums = []
    for rank in (0, 1):
        model = Model()
        for micro in (0, 1):
            (ddp.loss_of(model, micro, (rank,)) / 2).backward()
        sums.append(ddp.gradients(model))
    modes = tuple(MODES)
    for answer in ranks(_accumulated, modes, (True, False)):
        for mode, (found, (first, second)) in zip(modes, answer, strict=True):
            assert not ddp.differing(found, ddp.average(*sums)) and first == 0 < second, mode
    for answer in ranks(_accumulated, ("default",), (False, False)):  # the mutants: exchanged twice, or never
        assert answer[0][1][0] > 0
    for answer in ranks(_accumulated, ("default",), (True, True)):
        assert ddp.differing(answer[0][0], ddp.average(*sums))


# ---- layers that do not train, or not in this step ----


def _freeze(model: Model) -> Model:
    for module in (model.first, *model.stack.blocks[:3], model.stack.blocks[5].mlp):
        module.requires_grad_(False)
    return model


def _frozen(rank: int) -> list[tuple]:
    found = []
    for mode in MODES:
        model = DDP(_freeze(Model()), **MODES[mode])
        found.append((_step(model, rank), model.module.stack.report))
    return found


def test_frozen_layers(ranks):
    """Layers below the lowest one that trains are not rebuilt; the others' gradients are the average of both
    ranks'.
    """
    models = [_freeze(Model()) for _ in range(2)]
    expected = _averaged(*(_step(model, half) for half, model in enumerate(models)))
    for rank, answer in enumerate(ranks(_frozen)):
        assert len(answer) == len(MODES)
        for found, report in answer:
            assert not ddp.differing(_gradients(found), expected)
            assert report == models[rank].stack.report and report.exact and report.layers == LAYERS - 3


class Skippable(nn.Module):
    """A block that can be left out of a step; its weights are then in no graph."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.skip = block, False

    def forward(self, x):
        return torch.zeros_like(x) if self.skip else self.block(x)


#: Blocks each rank leaves out, step by step.
LEFT_OUT = [((3,), (3,)), ((2, 5), (5, 6)), ((), (0, 7)), ((), ())]


def _skipping() -> Model:
    return Model(blocks=[Skippable(block) for block in example_blocks(LAYERS, ddp.WIDTH)])


def _skipped(model: nn.Module, rank: int, step: int) -> dict:
    for k, block in enumerate(ddp.inner(model).stack.blocks):
        block.skip = k in LEFT_OUT[step][rank]
    found = _step(model, rank, step)
    assert ddp.inner(model).stack.report.exact
    return found


def _left_out(rank: int, options: dict) -> list[dict]:
    model = DDP(_skipping(), **options)
    return [_skipped(model, rank, step) for step in range(len(LEFT_OUT))]


def test_layers_left_out_of_a_step(ranks):
    """find_unused_parameters=True: a weight that only one rank used has half that rank's gradient, one that
    nobody used has none.
    """
    alone = _skipping()
    for step, answers in enumerate(zip(*ranks(_left_out, {"find_unused_parameters": True}))):
        expected = _averaged(*(_skipped(alone, half, step) for half in (0, 1)))
        for found in answers:
            assert not ddp.differing(_gradients(found), expected)
        assert step or not any("blocks.3." in name for name in expected)


def _refused(rank: int) -> str:
    with pytest.raises(RuntimeError) as error:
        _left_out(rank, {})
    return str(error.value)


def test_layers_left_out_without_find_unused_parameters(ranks):
    """torch refuses the next step and names the option."""
    assert all(
        "passing the keyword argument `find_unused_parameters=True`" in message for message in ranks(_refused)
    )


# ---- kept graphs ----


def _kept(rank: int) -> list[tuple]:
    found = []
    for options in (
        {"keep": 3 * rank},
        {"keep": LAYERS * rank},
        {"keep": "auto", "memory_budget": 60_000},
        {"save_ops": "attention"},
    ):
        model = DDP(Model(**options), **MODES["small buckets"])
        answer = _step(model, rank)
        report = model.module.stack.report
        found.append((answer, None if report is None else (report.exact, report.kept)))
    return found


def test_kept_graphs_and_operators(ranks):
    """What a rank keeps is its own affair: each may keep another number of layers."""
    expected = _averaged(*(_step(Model(), half) for half in (0, 1)))
    answers = ranks(_kept)
    for answer in answers:
        for found, _ in answer:
            assert not ddp.differing(_gradients(found), expected)
    zero, one = ([report for _, report in answer] for answer in answers)
    assert zero[:2] == [(True, 0), (True, 0)] and one[:2] == [(True, 3), None] and zero[2:] == one[2:]
    assert zero[2][0] and 0 < zero[2][1] < LAYERS and zero[3] == (True, 0)


# ---- a stack by itself, and ranks with unequal work ----


class Routed(nn.Module):
    """A block with a loss of its own beside its increment."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.router = block, nn.Linear(ddp.WIDTH, 4)

    def forward(self, x):
        return self.block(x), self.router(x).square().mean()


def _routed(rank: int, options: dict | None = None) -> tuple:
    torch.manual_seed(0)
    stack = revstep.ReversibleStack(
        [Routed(block) for block in example_blocks(LAYERS, ddp.WIDTH)], revstep.Blend(), readout="pair"
    )
    model = stack if options is None else DDP(stack, **options)
    for step in range(2):  # DDP orders its buckets anew for the second
        stack.zero_grad()
        x, y = ddp.batch(step, (rank,))
        (prev, cur), aux = model(x)
        (
            (prev - y).square().mean() + (cur - y).square().mean() + sum(penalty for (penalty,) in aux)
        ).backward()
    return {name: p.grad for name, p in stack.named_parameters()}, stack.report.exact


def _routed_in_all_modes(rank: int) -> list:
    return [_routed(rank, options) for options in MODES.values()]


def test_a_stack_alone_with_two_outputs_and_auxiliary_losses(ranks):
    """No weights around it, an input without gradient; routers of all layers train."""
    (zero, _), (one, _) = (_routed(half) for half in (0, 1))
    for answer in ranks(_routed_in_all_modes):
        assert len(answer) == len(MODES) and all(
            exact and not ddp.differing(found, ddp.average(zero, one)) for found, exact in answer
        )


def _uneven(rank: int) -> dict:
    model = DDP(Model())
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with model.join(divide_by_initial_world_size=True):
        for step in range(1 + rank):
            ddp.loss_of(model, step, (rank,)).backward()
            opt.step()
            opt.zero_grad()
    return ddp.weights(model)


def test_ranks_with_unequal_numbers_of_batches(ranks):
    """Under DDP.join rank 0, out of batches, takes part in the all-reduces of rank 1's second step with
    zeros, and ends with its weights.
    """
    alone = Model()
    opt = torch.optim.SGD(alone.parameters(), lr=0.1)
    for step in (0, 1):
        for half in (0, 1)[step:]:
            (ddp.loss_of(alone, step, (half,)) / 2).backward()
        opt.step()
        opt.zero_grad()
    for found in ranks(_uneven):
        assert not ddp.differing(found, ddp.weights(alone))


# ---- values out of range ----


def _scaled(
    model: nn.Module, rank: int, halves: tuple[int, ...], bad: int | None
) -> tuple[dict, float, list]:
    """Two steps with a loss scale; in the first the input of half ``bad`` is far out of range. Weights after
    each, and the scale.
    """
    torch.manual_seed(0)
    scaler, opt, found = (
        torch.amp.GradScaler("cpu", init_scale=2.0**8),
        torch.optim.SGD(model.parameters(), lr=0.1),
        [],
    )
    for step in (0, 1):
        for half in halves:
            x, y = ddp.batch(step, (half,))
            x = x * 1e9 if step == 0 and half == bad else x
            scaler.scale((model(x) - y).square().mean() / len(halves)).backward()
        scaler.step(opt)
        scaler.update()
        opt.zero_grad()
        found.append((ddp.weights(model), scaler.get_scale()))
    return found


def _propagating() -> Model:
    return Model(dropout=0.0, state=revstep.FixedPoint(on_nonfinite="propagate"))


def _out_of_range(rank: int, bad: int | None) -> list:
    return _scaled(DDP(_propagating()), rank, (rank,), bad)


@pytest.mark.parametrize("bad", [1, None])
def test_a_state_out_of_range_on_one_rank(ranks, bad):
    """With on_nonfinite="propagate" the NaN reaches all gradients of all ranks: every rank's GradScaler skips
    the step, the next one is taken.
    """
    expected = _scaled(_propagating(), 0, (0, 1), bad)
    for answer in ranks(_out_of_range, bad):
        for step in (0, 1):
            assert (
                not ddp.differing(answer[step][0], expected[step][0]) and answer[step][1] == expected[step][1]
            )
    skipped = not ddp.differing(expected[0][0], ddp.weights(_propagating()))
    assert skipped == (bad == 1) and expected[0][1] == (2.0**7 if skipped else 2.0**8)
    assert len(ddp.differing(expected[1][0], expected[0][0])) > 8 * LAYERS


# ---- errors ----


class Forgetful(nn.Module):
    """A block with hidden state."""

    def __init__(self, block: nn.Module, wrong: bool):
        super().__init__()
        self.block, self.wrong, self.calls = block, wrong, 0

    def forward(self, x):
        self.calls += self.wrong
        return self.block(x) * (1.0 + self.calls)


def _forgetful(wrong: bool) -> Model:
    blocks = example_blocks(LAYERS, ddp.WIDTH)
    return Model(blocks=[*blocks[:5], Forgetful(blocks[5], wrong), *blocks[6:]])


def _one_wrong(rank: int) -> None:
    model = DDP(_forgetful(rank == 1), **MODES["small buckets"])
    try:
        _step(model, rank)
    except revstep.ReconstructionError as error:
        assert error.layer == 5
        os._exit(3)  # as a training script ends


def test_an_error_on_one_rank_ends_the_others(ranks):
    """The rank whose reconstruction failed raises; when its process has ended, the other one's all-reduce
    fails, long before its time is up.
    """
    with pytest.raises(processes.RankError) as error:
        ranks(_one_wrong)
    zero, one = str(error.value).split("rank 1:")
    assert (
        re.search("(closed|reset) by peer", zero)
        and "Timed out" not in zero
        and "the process has ended" in one
    )


def _both_wrong(rank: int) -> list:
    model = DDP(_forgetful(True))
    with pytest.raises(revstep.ReconstructionError, match="layer 5"):
        _step(model, rank)
    model.module.stack.blocks[5].wrong, model.module.stack.blocks[5].calls = False, 0
    with pytest.raises(RuntimeError, match="finished reduction in the prior iteration"):
        _step(model, rank)
    alone = model.module
    del model  # its hooks go with it
    gc.collect()
    again = DDP(alone)
    return _step(again, rank), alone.stack.report.exact


def test_after_an_error(ranks):
    """torch's DDP cannot go on after a backward that did not end, with any model. In a new wrapper, the old
    one gone, the model trains on.
    """
    expected = _averaged(*(_step(_forgetful(False), half) for half in (0, 1)))
    for found, exact in ranks(_both_wrong):
        assert exact and not ddp.differing(_gradients(found), expected)
