"""``revstep bench peers``: a trunk's training step beside other packages: torch's checkpointing on the
residual trunk, RevNet packages on the coupling of the same halves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from revstep.lm._language_model import ResidualStack
from revstep.schemes import Hamiltonian, make
from revstep.stack import ReversibleStack
from revstep.state import Float

from ..bench import packages
from ..bench.packages import versions
from ..bench.peaks import Step, in_children
from ..bench.runner import environment, goal
from .trunk import OPTIONS as TRUNK_OPTIONS
from .trunk import TO_CHECKPOINT, TrunkCase, blocks_of, in_steps, steps_table, timed, to_plain, train_step

Trunk = Callable[[Tensor], Tensor]
#: Rows that reverse the coupling, and the row that they must agree with; for the others see :func:`families`.
COUPLING, STORED = "coupling", "coupling, stored"
OURS = (COUPLING, f"{COUPLING}, keep=1")


def families(
    case: TrunkCase, only: str | None = None
) -> tuple[dict[str, dict[str, Trunk]], list[dict[str, str]]]:
    """``(network -> row -> trunk, what was left out and why)``. The first row of each network stores
    everything and is what its other rows must agree with.

    All rows share one set of blocks: attention and MLP, which are F and G of the coupling and ``f(p) = a +
    MLP(p + a)`` of the others. ``only``: no package is imported but that of this row, if it is of one.
    """
    blocks = blocks_of(case)
    halves = [block.halves() for block in blocks]
    reversing, skipped = packages.coupled_trunks(halves, only)
    for reverse in reversing.values():
        reverse.to(case.device)

    def ours(**options: object) -> ReversibleStack:
        return ReversibleStack(blocks, make(case.scheme), **options)

    def coupled(**options: object) -> ReversibleStack:
        return ReversibleStack(halves, Hamiltonian(), **options)

    name = f"reversible {case.scheme}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        coupling = {
            COUPLING: coupled(),
            OURS[1]: coupled(keep=1),
            f"{COUPLING}, float state": coupled(state=Float()),
            **reversing,
        }
    return {
        "residual": {"plain": ResidualStack(blocks), **packages.checkpointed_trunks(blocks)},
        case.scheme: {
            f"{name}, stored": ours(keep=case.layers),
            name: ours(),
            f"{name}, keep=1": ours(keep=1),
            f"{name}, attention kept": ours(save_ops="attention"),
        },
        COUPLING: {STORED: packages.Stored(halves), **coupling},
    }, skipped


def steps(case: TrunkCase, name: str) -> tuple[Step, Step, Callable[[], None]]:
    """The steps of a row, for :func:`..bench.peaks.in_children`."""
    networks, _ = families(case, name)
    every = {name: trunk for rows in networks.values() for name, trunk in rows.items()}
    return in_steps(every[name], every["plain"].parameters(), case)


def gradients(trunk: Trunk, parameters: list[Tensor], x: Tensor, case: TrunkCase) -> list[Tensor]:
    """Of one training step: with respect to x and every parameter."""
    for p in parameters:
        p.grad = None
    leaf = train_step(trunk, x, case)
    found = [leaf.grad, *(p.grad for p in parameters)]
    for p in parameters:
        p.grad = None
    return [torch.zeros_like(p) if g is None else g for p, g in zip([leaf, *parameters], found)]


def off(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Distance of all gradients together, relative to the norm of those wanted."""
    distance = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(found, wanted))
    return (distance / sum(float(b.double().square().sum()) for b in wanted)) ** 0.5


def gradients_off(networks: dict[str, dict[str, Trunk]], case: TrunkCase) -> dict[str, float]:
    """Row -> :func:`off` from the first row of its network."""
    parameters = list(networks["residual"]["plain"].parameters())
    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    out = {}
    for rows in networks.values():
        wanted = None
        for name, trunk in rows.items():
            found = gradients(trunk, parameters, x, case)
            wanted = found if wanted is None else wanted
            out[name] = off(found, wanted)
    return out


def run_peers(case: TrunkCase, rounds: int = 9, memory: bool = True) -> dict:
    """Measure one case. Returns ``{"case", "rounds", "environment", "goals", "skipped", "measurements"}``
    ready for JSON.

    Each measurement has its ``network`` and ``gradient_off``, and with ``memory`` what
    :func:`..bench.peaks.in_children` found.
    """
    networks, skipped = families(case)
    every = {name: trunk for rows in networks.values() for name, trunk in rows.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        errors = gradients_off(networks, case)
    rows = timed(every, case, rounds)
    found = in_children(steps, case, list(every)) if memory else {}
    network = {name: kind for kind, members in networks.items() for name in members}
    for row in rows:
        row |= {"network": network[row["name"]], "gradient_off": errors[row["name"]]} | (
            {"memory": found[row["name"]]} if memory else {}
        )
    found_versions = versions(*(package for package, _ in packages.PEERS.values()))
    return {
        "case": asdict(case),
        "rounds": rounds,
        "environment": environment(case.device) | found_versions,
        "goals": goals(case, rows, found),
        "skipped": skipped,
        "measurements": rows,
    }


def goals(case: TrunkCase, rows: list[dict], memory: dict[str, dict]) -> list[dict]:
    """Against the plain step, against checkpointing, and against each package that is there: faster, at no
    larger peak by the allocator.
    """
    ratios = {row["name"]: row["ratios"] for row in rows}
    ours = f"reversible {case.scheme}, keep=1"
    bounds = {"plain": to_plain(case), "checkpoint": TO_CHECKPOINT}
    out = [
        goal(f"time, {ours} / {other}", ratios[ours][other], most, False) for other, most in bounds.items()
    ]
    for peer in packages.PEERS:
        if peer in ratios:
            out += [goal(f"time, {mine} / {peer}", ratios[mine][peer], 1.0, False) for mine in OURS]
            out += [
                goal(
                    f"peak by the allocator, {mine} / {peer}",
                    memory[mine]["peak"] / memory[peer]["peak"],
                    1.0,
                    False,
                )
                for mine in OURS
                if memory
            ]
    return out


# ------------------------------------------------------------------------------------------------------------
# The case as ``revstep bench`` takes it: its name, its options, its tables and its goals.

NAME = "peers"
HELP = (
    "a training step beside torch.utils.checkpoint (block, every k-th, segments, selective), revlib, memcnn,"
    " RevTorch and the Reformer's layers"
)
EXAMPLES = """
revstep bench peers --json peers.json --csv figures.csv
"""
ROUNDS = 9
OPTIONS = TRUNK_OPTIONS


def run(options: dict[str, Any], settings: Any) -> dict:
    result = run_peers(TrunkCase(**options), settings.rounds, settings.memory)
    settings.show(result)
    return result


def tables(result: dict) -> list:
    off = ("gradient off", lambda m: "0" if m["gradient_off"] == 0 else f"{m['gradient_off']:.1e}")
    return [steps_table(result, ("plain", "checkpoint", "coupling"), (off,))]


def verdicts(result: dict) -> list[tuple[str, str, str, str]]:
    from ..tables import rows

    return rows(result["goals"])
