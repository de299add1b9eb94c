"""``revstep bench compile``: the step of a trunk with its blocks compiled one by one, plain and reversible,
beside the same step uncompiled; and the step compiled whole.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from revstep.lm._language_model import ResidualStack
from revstep.schemes import make
from revstep.stack import ReversibleStack

from ..bench.peaks import Step, in_children
from ..bench.runner import environment, goal, measure
from . import trunk
from .trunk import TrunkCase, blocks_of, in_autocast, synchronise

WHOLE = "reversible, one graph"
#: At most this ratio.
GOALS = {(f"reversible, compiled{keep}", "reversible"): 1.0 for keep in ("", ", keep=1")}


def trunks(case: TrunkCase, backend: str = "inductor") -> dict[str, Callable[[Tensor], Tensor]]:
    """All trunks on the same weights. ``WHOLE`` stands for the compiled reversible trunk inside a compiled
    step.
    """
    blocks = blocks_of(case)
    compiled = [torch.compile(block, backend=backend) for block in blocks]
    return {
        "plain": ResidualStack(blocks),
        "reversible": ReversibleStack(blocks, make(case.scheme)),
        "plain, compiled": ResidualStack(compiled),
        "reversible, compiled": ReversibleStack(compiled, make(case.scheme)),
        "reversible, compiled, keep=1": ReversibleStack(compiled, make(case.scheme), keep=1),
        WHOLE: ReversibleStack(compiled, make(case.scheme)),
    }


def loss_of(
    trunk: Callable[[Tensor], Tensor], case: TrunkCase, whole: bool, backend: str
) -> Callable[[Tensor], Tensor]:
    """The mean square of a trunk's output; ``whole``: compiled with all that is in it."""

    def loss(leaf: Tensor) -> Tensor:
        with in_autocast(case):
            y = trunk(leaf)
        return y.square().mean()

    return torch.compile(loss, backend=backend, fullgraph=True) if whole else loss


def steps(case: TrunkCase, name: str) -> tuple[Step, Step, Callable[[], None]]:
    """The steps of a row, for :func:`..bench.peaks.in_children`; compiled before they are measured."""
    made = trunks(case)
    loss, parameters = loss_of(made[name], case, name == WHOLE, "inductor"), list(made["plain"].parameters())
    x = torch.randn(case.batch, case.length, case.width, device=case.device)

    def step(between: Callable[[], None]) -> None:
        value = loss(x.detach().requires_grad_())
        between()
        value.backward()

    def forget() -> None:
        for p in parameters:
            p.grad = None

    return step, step, forget


def run_compiled(case: TrunkCase, rounds: int = 15, memory: bool = True, backend: str = "inductor") -> dict:
    """Measure one case: ``{"case", "environment", "graphs", "exact", "goals", "measurements"}``, ready for
    JSON.

    ``graphs``: how many dynamo compiled before the measured rounds, and during them. ``exact``: every
    reversible row rebuilt every state, bit for bit.
    """
    from torch._dynamo.utils import counters

    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    made = trunks(case, backend)

    def step(loss: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        return lambda: loss(x.detach().requires_grad_()).backward()

    timed = {name: step(loss_of(trunk, case, name == WHOLE, backend)) for name, trunk in made.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = counters["stats"]["unique_graphs"]
        for run in (*timed.values(), *timed.values()):
            run()
        warm = counters["stats"]["unique_graphs"]
        rows = measure(timed, rounds, sync=synchronise(case))
    during = counters["stats"]["unique_graphs"] - warm
    found = {m.name: m for m in rows}
    peaks = in_children(steps, case, list(made)) if memory else {}
    goals = [goal(f"{a} / {b}", found[a].ratios[b], bound, at_least=False) for (a, b), bound in GOALS.items()]
    return {
        "case": asdict(case),
        "environment": environment(case.device),
        "graphs": {"before": warm - before, "during": during},
        "exact": all(trunk.report.exact for name, trunk in made.items() if name.startswith("reversible")),
        "goals": [*goals, goal("graphs compiled in the measured rounds", during, 0, at_least=False)],
        "measurements": [{**m.to_dict(), **({"memory": peaks[m.name]} if memory else {})} for m in rows],
    }


# ---- The case as ``revstep bench`` takes it: its name, its options, its tables and its goals ----

NAME = "compile"
HELP = "a training step with compiled blocks, and compiled whole"
EXAMPLES = """
revstep bench compile --json compile.json
"""
ROUNDS = 15
OPTIONS = trunk.OPTIONS


def run(options: dict[str, Any], settings: Any) -> dict:
    result = run_compiled(TrunkCase(**options), settings.rounds, settings.memory)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    graphs = result["graphs"]
    facts = [
        (
            f"{graphs['before']} before the rounds, {graphs['during']} in them",
            "yes" if result["exact"] else "NO",
        )
    ]
    return [
        trunk.steps_table(result, ("plain", "reversible", "plain, compiled")),
        ("Graphs", ("compiled", "states rebuilt exactly"), facts),
    ]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])
