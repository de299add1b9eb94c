"""A trace of DDP's backward: what is evaluated again, which gradients are there, which buckets have left, in
sequence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ddp_training import DDP
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

#: A fraction of a layer's parameters, in MiB: no bucket spans two layers.
SMALL = 0.005


def traced(
    model: nn.Module,
    modules: Sequence[nn.Module],
    loss_of: Callable[[nn.Module, int], Tensor],
    options: dict,
    steps: int = 3,
) -> list[tuple]:
    """(event, number, seconds) of the last step's backward under DDP with these options.

    ``evaluate``: one of the modules is called; ``gradient``: its first weight has its gradient; ``reduce``,
    ``reduced``: a bucket has left, is back.
    """
    events: list[tuple] = []
    since = [0.0]

    def note(event: str, number: int) -> None:
        events.append((event, number, time.perf_counter() - since[0]))

    def hook(group, bucket):
        number = bucket.index()
        note("reduce", number)

        def done(finished):
            note("reduced", number)
            return finished.value()

        return allreduce_hook(group, bucket).then(done)

    for k, module in enumerate(modules):
        module.register_forward_pre_hook(lambda *_, k=k: note("evaluate", k))
        next(module.parameters()).register_post_accumulate_grad_hook(lambda *_, k=k: note("gradient", k))
    engine = DDP(model, **options)
    engine.register_comm_hook(None, hook)
    for step in range(steps):
        loss = loss_of(engine, step)
        events.clear()
        since[0] = time.perf_counter()
        loss.backward()
    return events


def complaints(events: list[tuple], functions: int) -> list[str]:
    order = [(event, number) for event, number, _ in events]
    evaluated = [number for event, number in order if event == "evaluate"]
    reduced = [number for event, number in order if event == "reduce"]
    wrong = [] if evaluated == [*reversed(range(functions))] else [f"evaluated {evaluated}"]
    if (
        reduced != [*range(len(reduced))]
        or len(reduced) < functions
        or sum(event == "reduced" for event, _ in order) != len(reduced)
    ):
        wrong.append(f"buckets {reduced}")
    # Backward through the first function begins with its evaluation.
    began = len(order) - 1 - order[::-1].index(("evaluate", 0))
    if order.index(("reduce", 0)) > began:
        wrong.append("no bucket on its way before the last layer that backward reaches")
    if order.index(("reduce", 0)) > order.index(("evaluate", functions - 2)):
        wrong.append("no bucket on its way before the second evaluation")
    for k in range(1, functions):
        if order.index(("gradient", k)) > order.index(("evaluate", k - 1)):
            wrong.append(f"no gradient of {k} before {k - 1} is evaluated")
    early = sum(event == "reduce" for event, _ in order[:began])
    if early < len(reduced) * (functions - 2) / functions:
        wrong.append(
            f"{early} of {len(reduced)} buckets on their way before the last layer that backward reaches"
        )
    return wrong
