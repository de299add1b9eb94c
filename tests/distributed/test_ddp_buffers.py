"""Buffers under DDP, which broadcasts rank 0's before each forward pass, and blocks that talk to the other
rank themselves.
"""

from __future__ import annotations

import contextlib
from unittest import mock

import ddp_training as ddp
import pytest
import torch
import torch.distributed as dist
from ddp_training import DDP, LAYERS, MODES, Model
from torch import nn

import revstep
from revstep.stack._members import Members
from revstep_lab.verify import example_blocks


class Normed(nn.Module):
    """A block behind a batch norm over all positions."""

    def __init__(self, block: nn.Module, norm: nn.Module):
        super().__init__()
        self.block, self.norm = block, norm

    def forward(self, x):
        return self.block(self.norm(x.flatten(0, -2)).view_as(x))


def _normed(norm=nn.BatchNorm1d, train: bool = True, **options) -> Model:
    model = Model(
        blocks=[Normed(block, norm(ddp.WIDTH)) for block in example_blocks(LAYERS, ddp.WIDTH)], **options
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.train(train)
            module.running_mean.uniform_(-0.1, 0.1)
    return model


def _two_passes(model: nn.Module, rank: int) -> dict:
    """Two forwards before one backward; gradients and buffers."""
    model.zero_grad()
    losses = [ddp.loss_of(model, step, (rank,)) for step in (0, 1)]
    sum(losses).backward()
    buffers = {name: b.clone() for name, b in ddp.inner(model).named_buffers()}
    return ddp.gradients(model), buffers, ddp.inner(model).stack.report


# ---- batch norm ----


def _batch_norm(rank: int, train: bool, broadcast: bool, broken: bool = False) -> list:
    with (
        mock.patch.object(Members, "restored", lambda *_: contextlib.nullcontext())
        if broken
        else contextlib.nullcontext()
    ):
        return _both(rank, train, broadcast)


def _both(rank: int, train: bool, broadcast: bool) -> list:
    found = [
        _two_passes(DDP(_normed(train=train, keep=keep), broadcast_buffers=broadcast), rank)
        for keep in (0, LAYERS)
    ]
    return found, _two_passes(_normed(train=train), rank)


@pytest.mark.parametrize("broadcast", [True, False], ids=["broadcast", "own"])
@pytest.mark.parametrize("train", [True, False], ids=["training", "evaluation"])
def test_batch_norm(ranks, train, broadcast):
    """Statistics are updated once by each forward; what DDP writes between a forward and its backward does
    not disturb the re-evaluation.
    """
    (zero, own), (one, other) = ranks(_batch_norm, train, broadcast)
    expected = ddp.average(own[0], other[0])
    for rebuilt, stored in (zero, one):
        assert rebuilt[2].exact and rebuilt[2].layers == LAYERS
        assert not ddp.differing(rebuilt[0], expected)
        assert not ddp.differing(stored[0], expected) and not ddp.differing(rebuilt[1], stored[1])
    steps = {name: b for name, b in zero[0][1].items() if name.endswith("num_batches_tracked")}
    assert len(steps) == LAYERS and {int(b) for b in steps.values()} == {2 if train else 0}
    # Rank 1 went on from rank 0's statistics.
    assert bool(ddp.differing(one[0][1], other[1])) == (train and broadcast)
    assert not ddp.differing(zero[0][1], own[1])


def test_statistics_updated_in_both_directions_are_noticed(ranks):
    for (rebuilt, stored), _ in ranks(_batch_norm, True, True, True):
        assert len(ddp.differing(rebuilt[1], stored[1])) == 3 * LAYERS


class Averaging(nn.Module):
    """A block that divides by a running mean of magnitudes, which its own forward has just updated."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block
        self.register_buffer("size", torch.ones(()))

    def forward(self, x):
        if self.training:
            self.size.lerp_(x.detach().abs().mean(), 0.1)
        return self.block(x / self.size.clone())


def _averaging(rank: int, keep: int) -> str:
    blocks = example_blocks(LAYERS, ddp.WIDTH)
    model = DDP(Model(blocks=[*blocks[:4], Averaging(blocks[4]), *blocks[5:]], keep=keep))
    try:
        _two_passes(model, rank)
    except revstep.ReconstructionError as error:
        return f"layer {error.layer}"
    return "exact" if ddp.exact(model) else "not exact"


def test_a_buffer_that_a_block_writes_and_reads_is_refused_on_every_rank(ranks):
    """As in one process, by the checksum; the layer kept, it trains."""
    assert ranks(_averaging, 0) == ["layer 4"] * 2
    assert ranks(_averaging, 4) == ["exact"] * 2


# ---- blocks with collectives ----


def _synchronised(rank: int) -> str:
    try:
        DDP(_normed(nn.SyncBatchNorm))
    except ValueError as error:
        return str(error)
    return "accepted"


def test_sync_batch_norm_is_refused_by_torch_on_the_cpu(ranks):
    assert ranks(_synchronised) == ["SyncBatchNorm layers only work with GPU modules"] * 2


class Sum(torch.autograd.Function):
    """Over the ranks, in both directions."""

    sent = 0

    @staticmethod
    def forward(ctx, t):
        Sum.sent += 1
        out = t.clone()
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(ctx, g):
        Sum.sent += 1
        out = g.clone()
        dist.all_reduce(out)
        return out


class SyncNorm(nn.Module):
    """What SyncBatchNorm computes in training: normalises by mean and variance over the positions of all
    ranks.
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias, self.alone = (
            nn.Parameter(torch.ones(width)),
            nn.Parameter(torch.zeros(width)),
            False,
        )

    def forward(self, x):
        moments = torch.stack([x.mean(0), x.square().mean(0)])
        mean, square = moments if self.alone else Sum.apply(moments) / 2
        return (x - mean) / (square - mean.square() + 1e-5).sqrt() * self.weight + self.bias


def _collective(rank: int) -> list:
    found = []
    for options in (MODES["small buckets"], MODES["static"], MODES["unused"]):
        for keep in (0, LAYERS):
            model = DDP(_normed(SyncNorm, keep=keep), **options)
            _two_passes(model, rank)
            Sum.sent = 0
            gradients, _, report = _two_passes(model, rank)
            found.append((gradients, Sum.sent, report is None or report.exact))
    return found


def test_collectives_in_blocks(ranks):
    """They run again in the re-evaluation, in the same order on every rank and between DDP's own: the stored
    network's gradients to the bit.
    """
    zero, one = ranks(_collective)
    alone = _normed(SyncNorm)
    for block in alone.stack.blocks:
        block.norm.alone = True
    for (rebuilt, again, exact), (stored, once, _) in zip(zero[::2] + one[::2], zero[1::2] + one[1::2]):
        assert exact and not ddp.differing(rebuilt, stored) and not ddp.differing(rebuilt, zero[0][0])
        # Two passes; forward, backward and the evaluation between them.
        assert once == 2 * 2 * LAYERS and again == 2 * 3 * LAYERS
    # Ranks that do not talk.
    assert ddp.differing(ddp.average(*(_two_passes(alone, rank)[0] for rank in (0, 1))), zero[0][0])
