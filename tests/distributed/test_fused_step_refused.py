"""The optimiser inside backward, where several processes train: refused, whoever holds the weights."""

from __future__ import annotations

import pytest
import torch
from sharding import Model, shard
from torch.nn.parallel import DistributedDataParallel

import revstep


def _refusal(rank: int, engine: str) -> str:
    model = Model("blend")
    if engine == "fsdp":
        shard(model)
    elif engine == "ddp":
        DistributedDataParallel(model)
    try:
        revstep.fused_step(torch.optim.AdamW(model.parameters(), lr=1e-3))
    except revstep.UnsupportedError as error:
        return str(error)
    return "taken"


@pytest.mark.parametrize(
    "engine, words",
    [
        ("fsdp", "parameters are spread over processes (DTensor)"),
        ("ddp", "2 processes train together"),
        ("none", "2 processes train together"),
    ],
)
def test_refused_on_every_process(ranks, engine, words):
    assert all(words in said for said in ranks(_refusal, engine))
