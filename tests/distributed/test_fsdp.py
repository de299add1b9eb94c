"""Stacks under FSDP2 on two gloo processes: the same bits as one process, whatever the options."""

from __future__ import annotations

import contextlib
import itertools

import pytest
import sharding
import torch
from sharding import LAYERS, Model, differing, functions, gradients, shard, weights
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

import revstep
from revstep import verify
from revstep.schemes import available
from revstep_lab.verify import example_blocks

SCHEMES = list(available())


def _noded(model: nn.Module, modules: list[nn.Module] | None = None) -> nn.Module:
    """Gives each module a node of its own at its input, as FSDP does: what flows back from the module is
    summed up before it joins the rest.
    """
    for module in functions(model.stack) if modules is None else modules:
        module.register_forward_pre_hook(lambda _, args: (args[0].view_as(args[0]), *args[1:]))
    return model


# ---- training ----


def _trained(rank: int, scheme: str, divide: float | None) -> tuple[list, dict]:
    model = shard(Model(scheme))
    for module in functions(model.stack):
        if divide is not None:
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(divide)
    losses = sharding.train(model, (rank,), range(sharding.STEPS if divide is None else 2))
    return losses, weights(model)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_twenty_steps_are_those_of_one_process(ranks, scheme):
    """Every loss and every weight to the bit: halves a and b are reduced as (a + b) / 2, and one process adds
    a / 2 and b / 2.
    """
    alone = _noded(Model(scheme))
    expected = sharding.train(alone, (0, 1))
    (zero, w0), (one, w1) = ranks(_trained, scheme, None)
    assert [[a[0], b[0]] for a, b in zip(zero, one)] == expected
    assert not differing(w0, weights(alone)) and not differing(w1, weights(alone))


def test_what_that_comparison_rejects(ranks):
    """Gradients of which one module's are not averaged; one process whose sums associate in another order."""
    alone, without_nodes = _noded(Model()), Model()
    for model in (alone, without_nodes):
        sharding.train(model, (0, 1), range(2))
    (_, wrong), _ = ranks(_trained, "blend", 1.0)
    assert differing(wrong, weights(alone)) and differing(weights(without_nodes), weights(alone))


# ---- one step in many ways ----


def _step(model: nn.Module, rank: int, context=contextlib.nullcontext) -> dict:
    model.zero_grad()
    loss = sharding.backward(model, 3, rank, context=context)
    return {"loss": torch.tensor(loss), **gradients(model)}


def _bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


POLICIES = {
    "bf16, reduced in fp32": (
        {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32},
        contextlib.nullcontext,
    ),
    "bf16 throughout, fp32 out": (
        {"param_dtype": torch.bfloat16, "reduce_dtype": torch.bfloat16, "output_dtype": torch.float32},
        contextlib.nullcontext,
    ),
    "bf16 weights, inputs cast by autocast": (
        {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32, "cast_forward_inputs": False},
        _bf16,
    ),
}


def _policies(rank: int, scheme: str) -> list[tuple[str, list, list]]:
    """Per policy, the gradients that differ between rebuilding everything, and storing everything or
    rebuilding in float32.
    """
    out = []
    for name, (options, context) in POLICIES.items():
        found = [
            _step(shard(Model(scheme, keep=keep), mp_policy=MixedPrecisionPolicy(**options)), rank, context)
            for keep in (0, LAYERS)
        ]
        out.append((name, differing(*found), differing(found[0], _step(shard(Model(scheme)), rank))))
    return out


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_mixed_precision_policies(ranks, scheme):
    """Gradients are those of the stack that stores every state under the same policy, to the bit (and not
    those of float32).
    """
    for answer in ranks(_policies, scheme):
        assert len(answer) == len(POLICIES)
        for name, stored, full in answer:
            assert not stored and full, name


def _kept(rank: int) -> list:
    budget = {"keep": "auto", "memory_budget": 60_000}
    models = [
        shard(Model(**options))
        for options in ({}, {"keep": 3}, {"keep": LAYERS}, {"save_ops": "attention"}, budget)
    ]
    found = [_step(model, rank) for model in models[:-1]]
    assert differing(found[0], _step(models[0], rank + 2))  # another half of the batch
    x, y = sharding.batch(3, rank)
    torch.manual_seed(3000 + rank)
    (models[-1](x) - y).square().mean().backward()
    return (
        [differing(found[0], f) for f in found[1:]],
        differing({"loss": found[0]["loss"], **gradients(models[-1])}, found[0]),
        models[-1].stack.report.kept,
    )


def test_kept_graphs(ranks):
    for stored, auto, kept in ranks(_kept):
        assert stored == [[], [], []] and auto == [] and 0 < kept < LAYERS


def _offloaded(rank: int) -> tuple:
    model = shard(Model(), offload_policy=CPUOffloadPolicy(pin_memory=False))
    return differing(_step(model, rank), _step(shard(Model()), rank)), {
        p.device.type for p in model.parameters()
    }


def test_cpu_offload(ranks):
    """On the CPU nothing has to move; the policy is taken and changes nothing."""
    assert ranks(_offloaded) == [([], {"cpu"})] * 2


def _nested(rank: int, names: list[str], outer: bool) -> dict:
    model = Model()
    return _step(
        shard(
            model,
            [
                part
                for block in model.stack.blocks
                for part in (*(getattr(block, n) for n in names), *([block] if outer else []))
            ],
        ),
        rank,
    )


def _joined(modules=None) -> dict:
    """The gradients of one process: those of the two halves, each summed up alone as on its rank,
    averaged.
    """
    model = Model()
    _noded(model, modules(model) if modules else [])
    zero, one = (_step(model, half) for half in (0, 1))
    return {name: (zero[name] + one[name]) / 2 for name in zero if name != "loss"}


def test_submodules_of_a_block_sharded_by_themselves(ranks):
    """Attention and MLP, without and with the block around them; attention and the rest of the block; nothing
    but the root.

    A block that shards no weights of its own has no node at its input.
    """
    plain, noded = _joined(), _joined(lambda m: m.stack.blocks)
    cases = {
        ((), False): plain,
        (("attention", "mlp"), False): plain,
        (("attention", "mlp"), True): plain,
        (("attention",), True): noded,
    }
    for (names, outer), expected in cases.items():
        for answer in ranks(_nested, list(names), outer):
            answer.pop("loss")
            assert not differing(answer, expected), (names, outer)
    assert differing(plain, noded)  # what one process sums up in another order is told apart


# ---- accumulation, clipping, frozen layers ----


def _accumulated(rank: int, sync: bool) -> tuple:
    model = shard(Model())
    counts = []
    for micro in (0, 1):
        model.set_requires_gradient_sync(sync or micro == 1)
        with sharding.collectives() as found:
            sharding.backward(model, micro, rank, 0.5)
        counts.append(len(found["reduce"]))
    return gradients(model), counts, sharding.gathered(model.stack)


# The mutant that always reduces.
def test_gradient_accumulation(ranks):
    """set_requires_gradient_sync(False) on the first micro-batch: no reduction then, one for each shard
    later, and the sum is right to the bit.
    """
    sums = []
    for rank in (0, 1):
        model = _noded(Model())
        for micro in (0, 1):
            sharding.backward(model, micro, rank, 0.5)
        sums.append(gradients(model))
    expected = {name: (sums[0][name] + sums[1][name]) / 2 for name in sums[0]}
    for found, counts, after in ranks(_accumulated, False):
        assert not differing(found, expected) and counts == [0, LAYERS + 1] and after == []
    assert [counts for _, counts, _ in ranks(_accumulated, True)] == [[LAYERS + 1, LAYERS + 1]] * 2


def _clipped(rank: int) -> tuple:
    model = shard(Model())
    sharding.backward(model, 0, rank)
    before = gradients(model)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    assert isinstance(norm, DTensor)
    return before, norm.full_tensor(), gradients(model)


def test_clipping_by_the_norm_of_all_shards(ranks):
    """The norm within a derived bound of the exact one; the clipped gradients are the gradients times the
    factor, to the bit.

    A sum of n squares in float32 has a relative error of at most n u (u = 2^-24), so a tensor's norm, and
    then the norm of the norms of T tensors, together at most (n + T + 4) u / 2 with the roundings of squares
    and roots; n: elements of the largest tensor.
    """
    (before, norm, after), (_, other, _) = ranks(_clipped)
    exact = torch.cat([g.double().flatten() for g in before.values()]).norm()
    bound = (max(g.numel() for g in before.values()) + len(before) + 4) * 2**-25
    assert norm == other and abs(norm / exact - 1) <= bound and norm > 0.01
    assert not differing(after, {name: g * (0.01 / (norm + 1e-6)) for name, g in before.items()})
    alone = torch.cat([g.double().flatten().chunk(2)[0] for g in before.values()]).norm()
    assert abs(alone / exact - 1) > bound  # the norm of one rank's shards would be rejected


def _frozen(rank: int) -> list:
    found = []
    for sharded in (True, False):
        model = Model()
        for module in (model.first, *model.stack.blocks[:3]):
            module.requires_grad_(False)
        model = shard(model) if sharded else _noded(model)
        x, y = sharding.batch(0, rank)
        torch.manual_seed(rank)
        with sharding.collectives() as calls:
            (model(x) - y).square().mean().backward()
        found.append((gradients(model), model.stack.report, len(calls["gather"])))
    return found


def test_frozen_layers(ranks):
    """Layers below the lowest trained one are neither rebuilt nor, but for one, gathered in backward; the
    others' gradients are the average of both ranks'.
    """
    zero, one = ranks(_frozen)
    expected = {name: (g + one[1][0][name]) / 2 for name, g in zero[1][0].items()}
    assert not differing(zero[0][0], expected) and not differing(one[0][0], expected)
    assert zero[0][1] == zero[1][1] and zero[0][1].exact and zero[0][1].layers == LAYERS - 3
    assert zero[0][2] == (1 + LAYERS) + (LAYERS - 3) + 1  # FSDP gathers one layer ahead


def _stated(rank: int) -> tuple:
    model = shard(Model())
    sharding.backward(model, 0, rank)
    x = sharding.batch(1, rank)[0]
    states = model.stack.states(x)
    rebuilt = model.stack.reconstruct(states.last_two)
    plain = Model().stack.states(x)
    return (
        verify.reconstruction(model.stack, x).ok,
        [torch.equal(a, b) for a, b in zip(states, rebuilt)],
        len(states) - len(plain),
    )


def test_states_and_verify_after_a_first_forward(ranks):
    assert ranks(_stated) == [(True, [True] * (LAYERS + 2), 0)] * 2


# ---- refusals and errors ----


def _paired(rank: int) -> tuple[str, str]:
    messages = []
    pairs = [tuple(block.halves()) for block in example_blocks(LAYERS, sharding.WIDTH)]
    for blocks in (None, pairs):  # modules with halves(), and plain pairs
        model = Model("hamiltonian", blocks=blocks)
        try:
            sharding.backward(shard(model, list(model.stack.blocks)), 0, rank)
        except revstep.UnsupportedError as error:
            messages.append(str(error))
    model = Model("hamiltonian")  # the advice: the halves, and what is left of the layers if one likes
    advised = _step(shard(model, [*functions(model.stack), *model.stack.blocks]), rank)
    return messages, differing(advised, _step(shard(Model("hamiltonian")), rank))


def test_a_layer_of_two_halves_sharded_as_one_is_refused(ranks):
    for messages, wrong in ranks(_paired):
        assert (
            len(messages) == 2
            and all("layer 0 was sharded as one module" in m and "layer.halves()" in m for m in messages)
            and not wrong
        )


class Forgetful(nn.Module):
    """A block with hidden state."""

    calls = itertools.count(1)

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.broken = block, True

    def forward(self, x):
        return self.block(x) * (1.0 + self.broken * next(self.calls))


def _recovered(rank: int) -> tuple:
    blocks = example_blocks(LAYERS, sharding.WIDTH)
    model = shard(Model(blocks=[*blocks[:5], Forgetful(blocks[5]), *blocks[6:]]))
    with pytest.raises(revstep.ReconstructionError, match="layer 5"):
        sharding.backward(model, 0, rank)
    model.reset_iter_state()
    model.unshard()
    model.zero_grad()  # of the gathered weights, which had their gradients already
    model.reshard()
    model.stack.blocks[5].broken = False
    found = _step(model, rank)
    return sorted(found) == sorted(_step(model, rank)), differing(found, _step(model, rank))


def test_after_a_reconstruction_error(ranks):
    """The error names the layer as ever; the root's reset_iter_state, with the gradients of its own weights
    dropped, and the next step is right.
    """
    assert ranks(_recovered) == [(True, [])] * 2


def _shared(rank: int) -> dict:
    model = Model()
    mesh = sharding.init_device_mesh("cpu", (2,))
    fully_shard([model.stack.blocks[0], model.stack.blocks[1]], mesh=mesh)
    return _step(shard(model, list(model.stack.blocks[2:])), rank)


def test_two_blocks_in_one_shard(ranks):
    expected = _joined(lambda m: [m.stack.blocks[0], *m.stack.blocks[2:]])
    for answer in ranks(_shared):
        answer.pop("loss")
        assert not differing(answer, expected)
