"""Stacks trained by DDP on two gloo processes: the run of one process over the two halves of the batch to the
bit, over the joined batch to rounding.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math

import ddp_training as ddp
import pytest
import torch
import torch.distributed as dist
from ddp_training import DDP, MODES, Model

import revstep
from revstep.schemes import available

SCHEMES = list(available())


def _bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


CONTEXTS = {"float32": contextlib.nullcontext, "bfloat16": _bf16}


# ---- to the bit: one process that adds the gradients of the two halves, each loss halved ----


def _trained(rank: int, scheme: str, kind: str, modes: tuple[str, ...], clip: float | None) -> dict:
    return {
        mode: ddp.train(DDP(Model(scheme), **MODES[mode]), [(rank,)], context=CONTEXTS[kind], clip=clip)
        for mode in modes
    }


def _complaints(answers: list[dict], expected: tuple[list, dict]) -> list[str]:
    """Where the ranks' losses, norms or weights are not those of the one process."""
    wrong = []
    for mode in answers[0]:
        for rank, answer in enumerate(answers):
            found, weights = answer[mode]
            losses = [(ls[rank], norm) for ls, norm in expected[0]]
            wrong += [f"{mode}, rank {rank}: losses"] * ([(ls[0], norm) for ls, norm in found] != losses)
            wrong += [f"{mode}, rank {rank}: {name}" for name in ddp.differing(weights, expected[1])]
    return wrong


@pytest.mark.parametrize("scheme", SCHEMES)
def test_twenty_steps_are_those_of_one_process(ranks, scheme):
    """DDP divides by 2 and adds; one process adds the gradients of halved losses. Halving is exact, so every
    bit is the same, whatever DDP's options.

    Dropout is active, and BDIA draws its signs, from generators that each rank seeds for itself.
    """
    expected = ddp.train(Model(scheme), [(0,), (1,)])
    modes = tuple(MODES) if scheme == "blend" else ("default", "unused")
    assert _complaints(ranks(_trained, scheme, "float32", modes, None), expected) == []


@pytest.mark.parametrize("scheme", ["blend", "bdia", "hamiltonian"])
def test_in_bfloat16_with_clipped_gradients(ranks, scheme):
    expected = ddp.train(Model(scheme), [(0,), (1,)], context=_bf16, clip=0.05)
    assert all(norm > 0.05 for _, (norm,) in expected[0])
    assert _complaints(ranks(_trained, scheme, "bfloat16", ("views",), 0.05), expected) == []


def _summed(state, bucket):
    """A hook that adds and does not divide."""
    return dist.all_reduce(bucket.buffer(), async_op=True).get_future().then(lambda future: future.value()[0])


def _alone(state, bucket):
    """A hook that leaves one bucket unreduced."""
    if bucket.index() == 1:
        future = torch.futures.Future()
        future.set_result(bucket.buffer())
        return future
    return _summed(None, bucket).then(lambda future: future.value() / 2)


def _broken(rank: int, which: str) -> dict:
    model = DDP(Model(), **MODES["small buckets"])
    if which in ("sum", "bucket"):
        model.register_comm_hook(None, _summed if which == "sum" else _alone)
    return {which: ddp.train(model, [(0 if which == "same half" else rank,)], 2)}


@pytest.mark.parametrize("which", ["sum", "bucket", "same half"])
def test_what_that_comparison_rejects(ranks, which):
    """Gradients not divided, or one bucket of them not exchanged; both ranks on the same half, with the same
    dropout.
    """
    expected = ddp.train(Model(), [(0,), (1,)], 2)
    assert any("stack" in wrong for wrong in _complaints(ranks(_broken, which), expected))


# ---- within a derived bound: one process on the joined batch ----

#: Grid of the states in the runs below; every state of the runs is far inside the range of 2^19.
UNIT = 2.0**-44


@dataclasses.dataclass(frozen=True)
class TiledBDIA(revstep.BDIA):
    """Draws for each half of the joined batch what a rank draws for its own."""

    def draw(self, steps, start, rows, training):
        drawn = super().draw(steps, start, rows // 2, training)
        return [c._replace(choice=c.choice.repeat(2)) if hasattr(c, "choice") else c for c in drawn]


def _double(scheme: str, joined: bool = False, tiled: bool = True) -> Model:
    made = scheme
    if scheme == "bdia":
        made = (TiledBDIA if joined and tiled else revstep.BDIA)(seed=1)
    return Model(made, dropout=0.0, dtype=torch.float64, state=revstep.FixedPoint(64, frac_bits=44))


def _in_double(rank: int, scheme: str, half: int | None = None) -> tuple:
    return ddp.train(DDP(_double(scheme)), [(rank if half is None else half,)])


def _displaced(model: Model, seed: int) -> Model:
    """Every element of every increment, in each step anew, moved up or down at random by at least one unit of
    the grid (no gamma is below 1/4).
    """
    passes = itertools.count()
    now = [0]
    model.register_forward_pre_hook(lambda *_: now.__setitem__(0, next(passes)))

    def mover(k: int):
        def move(_, __, f):  # called in both directions of a pass, with the same signs
            generator = torch.Generator().manual_seed(10_000 * seed + 100 * now[0] + k)
            return f + (8 * UNIT * torch.randint(2, f.shape, generator=generator) - 4 * UNIT)

        return move

    for k, function in enumerate(model.stack._functions()):
        function.register_forward_hook(mover(k))
    return model


def _vector(losses: list, weights: dict) -> torch.Tensor:
    """All losses and final weights; those of passes are averaged."""
    return torch.cat(
        [
            torch.tensor([sum(ls) / len(ls) for ls, _ in losses], dtype=torch.float64),
            *(w.flatten() for w in weights.values()),
        ]
    )


def _of_ranks(answers: list[tuple]) -> torch.Tensor:
    (zero, weights), (one, _) = answers
    return _vector([([a[0][0], b[0][0]], []) for a, b in zip(zero, one)], weights)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_twenty_steps_are_those_of_the_joined_batch_within_a_bound(ranks, scheme):
    """Everything in float64, states on a grid of 2**-44; the difference is the order in which sums are
    formed.

    Rounding moves a block's result by far less than a unit of the grid (sums of at most 64 terms of order 1:
    64 * 2**-53), so each increment is the same integer or its neighbour. Let J be the derivative of all
    losses and final weights by all N increments: the difference is at most sqrt(N) |J|_2 units. Moving all N
    at random by a unit or more changes the result by the square root of E |J s|^2 = |J|_F >= |J|_2 units or
    more. The factor 2 is for the one draw of s in place of the mean, and for the rounding of gradients, which
    is smaller than a unit again.
    """
    joined = _vector(*ddp.train(_double(scheme, joined=True), [(0, 1)]))
    moved = _vector(*ddp.train(_displaced(_double(scheme, joined=True), 1), [(0, 1)]))
    n = ddp.STEPS * ddp.LAYERS * available()[scheme].halves * 2 * ddp.BATCH * ddp.TIME * ddp.WIDTH
    bound = 2 * math.sqrt(n) * float((moved - joined).norm())
    answers = ranks(_in_double, scheme)
    difference = float((_of_ranks(answers) - joined).norm())
    assert 0 < difference <= bound < 1e-6
    assert not ddp.differing(answers[0][1], answers[1][1]) and answers[0][0] != answers[1][0]
    if scheme == "bdia":  # signs drawn for the joined batch at once are others
        untiled = _vector(*ddp.train(_double(scheme, joined=True, tiled=False), [(0, 1)]))
        assert float((_of_ranks(answers) - untiled).norm()) > bound
    if scheme == "blend":  # both ranks on one half
        assert float((_of_ranks(ranks(_in_double, scheme, 0)) - joined).norm()) > bound
