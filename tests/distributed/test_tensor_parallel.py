"""Blocks whose linears are spread over two gloo processes by DTensor plans."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path

import pytest
import sharding
import torch
import torch.nn.functional as F
from sharding import differing
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

import revstep
from revstep import hf
from revstep.schemes import available

sys.path.insert(0, str(Path(__file__).parent.parent / "hf"))

LAYERS, HEADS, STEPS, TIME = 4, 4, 3, 6
#: Grid of the states in the runs in float64; every state is far inside the range of 2^19.
UNIT = 2.0**-44


class Attention(nn.Module):
    """Heads of its own count: as many as its share of the projections holds."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm, self.head, self.dropout = nn.LayerNorm(width), width // HEADS, dropout
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, p: Tensor) -> Tensor:
        x = self.norm(p)
        q, k, v = (f(x).unflatten(-1, (-1, self.head)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return F.dropout(
            self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)),
            self.dropout,
            self.training,
        )


class MLP(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.up, self.down = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, p: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(self.norm(p))))


class Block(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.attention, self.mlp = Attention(width, dropout), MLP(width)

    def halves(self) -> tuple[nn.Module, nn.Module]:
        return self.attention, self.mlp

    def forward(self, p: Tensor) -> Tensor:
        a = self.attention(p)
        return a + self.mlp(p + a)


def _stack(scheme: str, dropout: float = 0.0, **options) -> revstep.ReversibleStack:
    torch.manual_seed(0)
    made = available()[scheme](**{"leapfrog": {"h": 0.5}, "bdia": {"seed": 1}}.get(scheme, {}))
    blocks = [Block(sharding.WIDTH, dropout) for _ in range(LAYERS)]
    return revstep.ReversibleStack(
        blocks, made, **{"state": revstep.FixedPoint(64, frac_bits=44)} | options
    ).double()


class Unreduced(RowwiseParallel):
    """A broken plan: each process goes on with its part of the sum."""

    @staticmethod
    def _prepare_output_fn(output_layouts, use_local_output, mod, outputs, device_mesh):
        return outputs.to_local()


def _plan(row: type[RowwiseParallel] = RowwiseParallel, sequence: bool = False) -> dict:
    given, back = ({"input_layouts": Shard(1)}, {"output_layouts": Shard(1)}) if sequence else ({}, {})
    columns = {
        name: ColwiseParallel(**given) for name in ("attention.q", "attention.k", "attention.v", "mlp.up")
    }
    norms = {name: SequenceParallel() for name in ("attention.norm", "mlp.norm")} if sequence else {}
    return columns | norms | {"attention.o": RowwiseParallel(**back), "mlp.down": row(**back)}


def _parallel(stack: revstep.ReversibleStack, plan: dict | None = None) -> revstep.ReversibleStack:
    mesh = init_device_mesh("cpu", (2,))
    for block in stack.blocks:
        parallelize_module(block, mesh, plan or _plan())
    return stack


def _input(step: int) -> Tensor:
    return torch.randn(
        2, TIME, sharding.WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(step)
    )


def _train(stack: revstep.ReversibleStack, rank: int | None = None) -> tuple[Tensor, list]:
    """Three steps: all losses and final weights, and the reports. ``rank``: keep that part of the sequence
    alone.
    """
    opt, losses, reports = torch.optim.SGD(stack.parameters(), lr=0.02), [], []
    for step in range(STEPS):
        x = _input(step)
        x = x if rank is None else x.chunk(2, 1)[rank].contiguous()
        loss = stack(x).square().sum() / (2 * TIME)
        loss.backward()
        losses.append(loss.detach())
        reports.append(stack.report)
        opt.step()
        opt.zero_grad()
    return (
        torch.cat([torch.stack(losses), *(sharding.whole(p).flatten() for p in stack.parameters())]),
        reports,
    )


def _displaced(stack: revstep.ReversibleStack, seed: int = 1) -> revstep.ReversibleStack:
    """Every element of every increment, in each step anew, moved up or down at random by at least one unit of
    the grid (no gamma is below 1/4).
    """
    passes, now = itertools.count(), [0]
    stack.register_forward_pre_hook(lambda *_: now.__setitem__(0, next(passes)))

    def mover(k: int):
        def move(_, __, f):  # called in both directions of a pass, with the same signs
            generator = torch.Generator().manual_seed(10_000 * seed + 100 * now[0] + k)
            return f + (8 * UNIT * torch.randint(2, f.shape, generator=generator) - 4 * UNIT)

        return move

    for k, function in enumerate(sharding.functions(stack)):
        function.register_forward_hook(mover(k))
    return stack


def _bound(scheme: str, expected: Tensor) -> float:
    """What the order of sums can do to losses and weights.

    In float64, with states on a grid of 2**-44: rounding moves a block's result by far less than a unit of
    the grid (sums of at most 64 terms of order 1: 64 * 2**-53), so each increment is the same integer or its
    neighbour. With J the derivative of the results by all N increments the difference is at most sqrt(N)
    |J|_2 units. Moving all N at random by a unit or more changes the results by the square root of E |J s|^2
    = |J|_F >= |J|_2 units or more. The factor 2 is for the one draw of s in place of the mean, and for the
    rounding of gradients, which is smaller than a unit again.
    """
    n = STEPS * LAYERS * available()[scheme].halves * 2 * TIME * sharding.WIDTH
    return 2 * math.sqrt(n) * float((_train(_displaced(_stack(scheme)))[0] - expected).norm())


def _trained(rank: int, scheme: str, kind: str) -> tuple[Tensor, list]:
    stack = _stack(scheme)
    # One group for FSDP, of one process here, in each of which the linears are spread over two.
    if kind == "both":
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("data", "tensor"))
        for block in stack.blocks:
            parallelize_module(block, mesh["tensor"], _plan())
        for function in sharding.functions(stack):
            fully_shard(function, mesh=mesh["data"])
        fully_shard(stack, mesh=mesh["data"])
    else:
        _parallel(stack, _plan(Unreduced) if kind == "unreduced" else _plan())
    return _train(stack)


@pytest.mark.parametrize("scheme", list(available()))
def test_three_steps_are_those_of_one_process_within_a_bound(ranks, scheme):
    expected, _ = _train(_stack(scheme))
    bound = _bound(scheme, expected)
    assert bound < 1e-6
    for kind in ("tensor", "both") if scheme in ("blend", "hamiltonian") else ("tensor",):
        answers = ranks(_trained, scheme, kind)
        for found, reports in answers:
            assert float((found - expected).norm()) <= bound and all(r.exact for r in reports)
        assert [r.checksum for r in answers[0][1]] == [r.checksum for r in answers[1][1]]


def test_what_that_bound_rejects(ranks):
    """A row-wise linear whose parts are not summed up: both processes rebuild their own states exactly, and
    the checksums tell them apart.
    """
    expected, _ = _train(_stack("blend"))
    (zero, reports), (one, other) = ranks(_trained, "blend", "unreduced")
    assert min(float((found - expected).norm()) for found in (zero, one)) > 1e3 * _bound("blend", expected)
    assert all(r.exact for r in (*reports, *other)) and not {r.checksum for r in reports} & {
        r.checksum for r in other
    }


# ---- sequence parallelism ----


def _sequenced(rank: int, scheme: str, plan: bool) -> tuple[Tensor, list, dict]:
    stack = _stack(scheme)
    found, reports = _train(_parallel(stack, _plan(sequence=True)) if plan else stack, rank)
    return found, reports


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_sequence_parallel_plan(ranks, scheme):
    """Each process keeps the states of its part of the sequence only: half the bytes; weights as those of one
    process, losses in two parts.
    """
    expected, whole = _train(_stack(scheme))
    bound = _bound(scheme, expected)
    (zero, r0), (one, r1) = ranks(_sequenced, scheme, True)
    joined = torch.cat([zero[:STEPS] + one[:STEPS], zero[STEPS:]])
    assert torch.equal(zero[STEPS:], one[STEPS:]) and float((joined - expected).norm()) <= bound
    for a, b, full in zip(r0, r1, whole):
        state = 2 * 8 * TIME * sharding.WIDTH  # bytes of one state of this process: half of two rows
        assert a.exact and b.exact and a.checksum != b.checksum and full.bytes_saved - a.bytes_saved >= state
    (alone, _), _ = ranks(_sequenced, scheme, False)  # blocks that never see the other part
    assert float((alone - expected)[STEPS:].norm()) > bound


# ---- random numbers, converted models, refusals ----


def _dropping(rank: int, seeds: list[int]) -> int:
    stack = _parallel(_stack("blend", dropout=0.2))
    torch.manual_seed(seeds[rank])
    stack(_input(0)).square().sum().backward()
    assert stack.report.exact
    return stack.report.checksum


def test_checksums_show_processes_that_draw_different_masks(ranks):
    """Dropout on replicated states must be seeded alike; each process alone is exact either way."""
    same, other = ranks(_dropping, [5, 5]), ranks(_dropping, [5, 6])
    assert same[0] == same[1] and other[0] != other[1]


def _converted(rank: int, scheme: str) -> tuple:
    import models

    found, reports = [], []
    for keep in (0, models.LAYERS):
        model = models.converted("Llama", scheme, convert={"keep": keep}).train()
        linears = {f"self_attn.{n}_proj": ColwiseParallel() for n in "qkv"} | {
            f"mlp.{n}_proj": ColwiseParallel() for n in ("gate", "up")
        }
        plan = linears | {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        for layer in hf.conversion(model).layers:
            parallelize_module(layer, init_device_mesh("cpu", (2,)), plan)
        ids = models.tokens()
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        found.append({"loss": loss.detach(), **sharding.gradients(model)})
        reports.append(hf.conversion(model).report)
    return differing(*found), reports[0], found[0]["loss"]


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_converted_model(ranks, scheme):
    """Gradients are those of the stored model under the same plan, to the bit, and both processes rebuild the
    same states.
    """
    pytest.importorskip("transformers")
    (zero, a, loss), (one, b, other) = ranks(_converted, scheme)
    assert zero == one == [] and a.exact and b.exact and a.checksum == b.checksum and loss == other


def _refused(rank: int) -> list[str]:
    mesh, messages = init_device_mesh("cpu", (2,)), []
    spread = _stack("hamiltonian")
    plan = _plan() | {"mlp.down": RowwiseParallel(use_local_output=False)}
    for stack, x in (
        (_parallel(_stack("blend")), DTensor.from_local(_input(0), mesh, [Replicate()])),
        (_parallel(spread, plan), _input(0)),
    ):
        with pytest.raises(revstep.UnsupportedError) as caught:
            stack(x)
        messages.append(str(caught.value))
    return messages


def test_states_that_are_dtensors_are_refused_by_name(ranks):
    for given, returned in ranks(_refused):
        assert "input is a DTensor" in given and "x.to_local()" in given
        assert returned.startswith("layer 0 (G) returned a DTensor") and "use_local_output=True" in returned
