"""Stacks under FSDP2 on two gloo processes: weights whole only while they are needed, gradients reduced
once.
"""

from __future__ import annotations

import pytest
import sharding
from sharding import Model, functions, shard


def _observed(rank: int, scheme: str, reshard: bool, broken: str = "") -> tuple:
    model = shard(Model(scheme), reshard_after_forward=reshard)
    sharding.backward(model, 0, rank)
    model.zero_grad()
    seen = []
    for k, function in enumerate(functions(model.stack)):
        if broken == "not freed":
            function.set_reshard_after_backward(False)
        list(function.modules())[-1].register_forward_pre_hook(
            lambda *_, k=k: seen.append((k, sharding.gathered(model.stack)))
        )
    with sharding.collectives() as found:
        sharding.backward(model, 1, rank)
        if broken == "reduced twice":
            sharding.backward(model, 2, rank)
    sizes = [sum(p.numel() for p in function.parameters()) for function in functions(model.stack)]
    own = sum(p.numel() for p in (*model.first.parameters(), *model.last.parameters()))
    return seen, found, sharding.gathered(model.stack), sizes, own


def _complaints(seen: list, found: dict, after: list, sizes: list[int], own: int, reshard: bool) -> list[str]:
    n = len(sizes)
    wrong = (
        []
        if [k for k, _ in seen] == [*range(n), *reversed(range(n))]
        else ["not evaluated once in each direction"]
    )
    for i, (k, whole) in enumerate(seen):
        if reshard:
            expected = [k]
        else:  # kept from the forward pass, and freed one by one by the backward pass
            expected = list(range(k + 1))
        if whole != expected:
            wrong.append(f"evaluation {i}, of {k}: {whole} whole, expected {expected}")
    if after:
        wrong.append(f"{after} whole after backward")
    if found["reduce"] != [*reversed(sizes), own]:
        wrong.append(f"reductions of {found['reduce']}")
    again = list(reversed(sizes)) if reshard else []
    if [2 * size for size in found["gather"]] != [own, *sizes, *again]:
        wrong.append(f"gathers of {found['gather']}")
    return wrong


@pytest.mark.parametrize(
    ("scheme", "reshard"), [("blend", True), ("blend", False), ("hamiltonian", True), ("hamiltonian", False)]
)
def test_weights_are_whole_only_for_their_evaluation_and_gradients_reduced_once(ranks, scheme, reshard):
    """At each evaluation the list of functions whose weights are whole; the sizes of all gathers and
    reductions of a step.
    """
    for answer in ranks(_observed, scheme, reshard):
        assert not _complaints(*answer, reshard)


def test_what_that_accounting_rejects(ranks):
    for broken in ("not freed", "reduced twice"):
        for answer in ranks(_observed, "blend", True, broken):
            assert _complaints(*answer, True), broken
