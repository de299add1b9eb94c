"""How a step of a trunk grows with depth, sequence length and batch, and the search for the largest batch
that fits. ``revstep bench paper`` measures by them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from revstep._specs import parse_scheme
from revstep.errors import ConfigError
from revstep.lm._architectures import Block, GPTConfig, ResidualStack
from revstep.plan._meter import Meter
from revstep.stack import ReversibleStack

from ..bench.peaks import Step, in_children
from ..bench.runner import goal, measure
from .trunk import TrunkCase, blocks_of, clock_of, in_steps, one_step, synchronise, train_step

# ------------------------------------------------------------------------------------------------------------
# The largest batch that fits: doubling, then bisection, then longer runs until one holds.


def largest(fits: Callable[[int], bool], most: int, part: int = 16) -> int:
    """The largest batch up to ``most`` for which ``fits`` holds, to within one part in ``part``; 0 where 1
    does not fit.
    """
    good, bad = 0, most + 1
    while good < most:
        batch = min(max(1, 2 * good), most)
        if not fits(batch):
            bad = batch
            break
        good = batch
    while bad - good > max(1, good // part):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def confirmed(batch: int, holds: Callable[[int], bool], part: int = 16) -> int:
    """``batch``, or the first below it, one part in ``part`` at a time, for which ``holds``; 0 where none
    does.
    """
    while batch > 0 and not holds(batch):
        batch -= max(1, batch // part)
    return batch


def line(x: list[float], y: list[float]) -> tuple[float, float, float]:
    """``(a, b, largest |y / (a + b x) - 1|)`` of the line with the least squares of relative deviations ``(a
    + b x) / y - 1``.

    Raises:
        ConfigError: fewer than three points, which any line fits nearly.
    """
    import numpy as np

    if len(x) < 3:
        raise ConfigError(
            f"{len(x)} points are given, expected at least 3: a line through fewer says nothing of growth"
        )
    points, values = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    rows = np.stack([1 / values, points / values], axis=1)
    (a, b), *_ = np.linalg.lstsq(rows, np.ones_like(values), rcond=None)
    return float(a), float(b), float(np.max(np.abs(values / (a + b * points) - 1)))


# ------------------------------------------------------------------------------------------------------------
# A step of a trunk against depth, against sequence length and against batch: time and memory of plain,
# checkpointed and reversible; what each more layer keeps.

WAYS = ("plain", "checkpoint", "reversible")
#: Largest relative deviation of the reversible step's time from a line in depth.
LINEAR = 0.05
#: Bytes for backward of one more layer: its checksum; the blend's carry beside it, an element.
CHECKSUM, CARRY = 8, 0.125


def trunk_of(case: TrunkCase, way: str) -> nn.Module:
    blocks = blocks_of(case)
    if way == "reversible":
        return ReversibleStack(blocks, parse_scheme(case.scheme).make())
    return ResidualStack(blocks, recompute=way == "checkpoint")


def steps(case: TrunkCase, way: str) -> tuple[Step, Step, Callable[[], None]]:
    """The steps of a row, for :func:`..bench.peaks.in_children`."""
    trunk = trunk_of(case, way)
    return in_steps(trunk, trunk.parameters(), case)


def against(case: TrunkCase, field: str, values: tuple[int, ...], rounds: int, memory: bool) -> dict:
    """Rows of each way at each value of one field of the case: one run, interleaved over ways and values.
    ``x``: the value; ``way``; ``memory``: what :func:`..bench.peaks.in_children` found.
    """
    cases = {(way, value): replace(case, **{field: value}) for value in values for way in WAYS}
    made = {
        key: (trunk_of(one, key[0]), torch.randn(one.batch, one.length, one.width, device=one.device))
        for key, one in cases.items()
    }
    names = {key: f"{key[0]}, {field} {key[1]:,}" for key in cases}
    variants = {names[key]: one_step(cases[key], trunk, x) for key, (trunk, x) in made.items()}
    found = {
        m.name: m for m in measure(variants, rounds, warmup=1, sync=synchronise(case), clock=clock_of(case))
    }
    rows = []
    for key, name in names.items():
        m = found[name]
        row = {
            **m.to_dict(),
            "x": key[1],
            "way": key[0],
            "ratios": {"plain": m.ratios[names["plain", key[1]]]} if key[0] != "plain" else {},
        }
        if memory:
            row["memory"] = in_children(steps, cases[key], [key[0]])[key[0]]
        rows.append(row)
    return {"field": field, "values": list(values), "rows": rows, "goals": [], "skipped": []}


def depth(case: TrunkCase, values: tuple[int, ...], rounds: int, memory: bool) -> dict:
    """:func:`against` depth, with the line through the reversible times, and what a layer more keeps for
    backward.
    """
    part = against(case, "layers", values, rounds, memory)
    times = [(row["x"], row["p50"]) for row in part["rows"] if row["way"] == "reversible"]
    a, b, off = line(*map(list, zip(*times)))
    part |= {"line": {"a": a, "b": b, "off": off}, "layer": kept_by_a_layer(case)}
    part["goals"] = [
        goal(
            f"time of the reversible step against depth {values[0]} to {values[-1]}: largest deviation from a"
            " + b L",
            off,
            LINEAR,
            False,
        )
    ]
    part["goals"] += [
        goal(f"bytes kept for backward by a layer more, {row['what']}", row["bytes"], row["expected"], False)
        for row in part["layer"]
    ]
    return part


def kept_by_a_layer(case: TrunkCase, few: int = 4, many: int = 12) -> list[dict]:
    """Bytes that one layer more keeps between forward and backward: by the stack's own report, and in tensors
    that operators made (the generator's state is not).

    ``expected``: a checksum, for the blend one bit an element, where a block draws the generator's state.
    """
    elements, generator = case.batch * case.length * case.width, torch.get_rng_state().numel()
    rows = []
    for what, scheme, dropout, more in (
        ("Midpoint", "midpoint", 0.0, 0),
        ("Blend(c=0.5)", "blend:c=0.5", 0.0, CARRY * elements),
        ("Midpoint, dropout", "midpoint", 0.1, generator),
    ):
        counted = []
        for layers in (few, many):
            config = GPTConfig(
                vocab=256,
                context=case.length,
                layers=layers,
                width=case.width,
                heads=case.heads,
                dropout=dropout,
            )
            stack = ReversibleStack(
                [Block(config).to(case.device) for _ in range(layers)], parse_scheme(scheme).make()
            )
            counted.append(_kept(stack, replace(case, layers=layers)))
        report, allocator = ((b - a) / (many - few) for a, b in zip(*counted))
        rows.append({"what": what, "bytes": report, "tensors": allocator, "expected": CHECKSUM + more})
    return rows


def _kept(stack: ReversibleStack, case: TrunkCase) -> tuple[int, int]:
    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    with Meter(real=True) as meter:
        for t in (x, *stack.parameters()):
            meter.hold(t)
        before = meter.live
        train_step(stack, x, case, lambda: meter.mark("forward"))
    return stack.report.bytes_saved, meter.marks[0][1] - before
