"""Checkpoints of torch.distributed.checkpoint: written by two processes in the middle of a run, read by two,
or by one without FSDP.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from sharding import STEPS, Model, differing, functions, optimiser, shard, train, weights
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.tensor import DTensor

HALF = STEPS // 2


def _fresh(scheme: str) -> Model:
    """A model with other weights."""
    model = Model(scheme)
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    return model


def _save(model: nn.Module, opt: torch.optim.Optimizer, folder: Path) -> None:
    parts = dict(zip(("model", "optimiser"), get_state_dict(model, opt)))
    dcp.save(parts, checkpoint_id=folder)


def _load(
    model: nn.Module, opt: torch.optim.Optimizer, folder: Path, forget: str = "", alone: bool = False
) -> None:
    """``forget``: a broken resumption that leaves out one of the two."""
    parts = dict(zip(("model", "optimiser"), get_state_dict(model, opt)))
    own = copy.deepcopy(parts)  # loading writes into the model's own tensors
    dcp.load(parts, checkpoint_id=folder, no_dist=alone)
    if forget:
        parts[forget] = own[forget]
    set_state_dict(model, opt, model_state_dict=parts["model"], optim_state_dict=parts["optimiser"])


def _run(rank: int, scheme: str, folder: Path) -> tuple[list, dict, dict]:
    """An uninterrupted run that saves half way: losses of the second half, weights half way and
    in the end.
    """
    model = shard(Model(scheme))
    opt = optimiser(model)
    train(model, (rank,), range(HALF), opt)
    _save(model, opt, folder)
    middle = weights(model)
    return train(model, (rank,), range(HALF, STEPS), opt), middle, weights(model)


def _resumed(rank: int, scheme: str, folder: Path, forget: str = "") -> tuple[list, dict]:
    model = shard(_fresh(scheme))
    opt = optimiser(model)
    _load(model, opt, folder, forget)
    assert all(isinstance(p, DTensor) for p in model.parameters())
    return train(model, (rank,), range(HALF, STEPS if not forget else HALF + 2), opt), weights(model)


def _resumed_alone(scheme: str, folder: Path) -> tuple[list, dict, dict]:
    """One process, no FSDP; with a node at each module's input, as FSDP has it, sums associate alike."""
    model = _fresh(scheme)
    opt = optimiser(model)
    _load(model, opt, folder, alone=True)
    middle = weights(model)
    for function in functions(model.stack):
        function.register_forward_pre_hook(lambda _, args: (args[0].view_as(args[0]), *args[1:]))
    return train(model, (0, 1), range(HALF, STEPS), opt), middle, weights(model)


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_a_run_goes_on_from_its_checkpoint(ranks, tmp_path, scheme):
    """Losses and weights of steps 11 to 20 to the bit, on two processes and on one."""
    (zero, middle, end), (one, _, _) = ranks(_run, scheme, tmp_path)
    (zero_again, w0), (one_again, w1) = ranks(_resumed, scheme, tmp_path)
    assert (zero_again, one_again) == (zero, one) and not differing(w0, end) and not differing(w1, end)
    losses, loaded, alone = _resumed_alone(scheme, tmp_path)
    assert not differing(loaded, middle) and not differing(alone, end)
    assert losses == [[a[0], b[0]] for a, b in zip(zero, one)]
    for forget in ("model", "optimiser") if scheme == "blend" else ():
        (broken, _), _ = ranks(_resumed, scheme, tmp_path, forget)
        assert broken[:2] != zero[:2], forget
