"""The same bits whatever the number of threads, the batch beside a system, and its place in it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from revstep.ode import compositions, fields, integrate
from revstep.ode.methods import Method
from revstep.state import FixedPoint
from revstep.verify._checks import Result

from .checksum import Restless

NAME = "determinism"
THREADS = (1, 2, 3)
#: A batch that neither vector lanes nor threads divide, and the pieces it is cut into.
BATCH, CUTS = 37, (0, 1, 8, 24, 37)
STEPS, H, STATE = 50, 0.05, FixedPoint(64, 50)
#: Systems of the tensor loop: more than the 32,768 elements from which torch shares an operation out among
#: threads.
MANY, FEW_STEPS = 17_000, 1


def _field(equation: str) -> Any:
    return fields.LotkaVolterra() if equation == "first" else fields.HenonHeiles(equation=equation)


def _start(equation: str, batch: int) -> list[np.ndarray]:
    g = np.random.default_rng(0)
    near = [[1.0, 0.6]] if equation == "first" else [[0.1, -0.1], [0.2, 0.1]]
    return [np.array(x) + 0.05 * g.standard_normal((batch, 2)) for x in near]


def _final(
    method: Method,
    equation: str,
    parts: Sequence[np.ndarray],
    loop: str,
    steps: int,
    threads: int | None = None,
) -> tuple[Tensor, Tensor]:
    y0 = parts[0] if equation == "first" else tuple(parts)
    return integrate(
        _field(equation),
        y0,
        scheme=method,
        h=H,
        steps=steps,
        state=STATE,
        scale=1.0,
        loop=loop,
        threads=threads,
    ).final


def _differences(one: Sequence[Tensor], other: Sequence[Tensor]) -> int:
    return sum(int((a != b).sum()) for a, b in zip(one, other))


def compiled(method: Method, equation: str) -> Result:
    """The compiled loop: 1, 2 and 3 threads; the batch in pieces, and upside down."""
    parts = _start(equation, BATCH)
    first = _final(method, equation, parts, "compiled", STEPS, 1)
    wrong = {
        f"{n} threads": _differences(first, _final(method, equation, parts, "compiled", STEPS, n))
        for n in THREADS
    }
    pieces = [
        _final(method, equation, [p[a:b] for p in parts], "compiled", STEPS, 2)
        for a, b in itertools.pairwise(CUTS)
    ]
    wrong["in pieces"] = _differences(first, [torch.cat([piece[i] for piece in pieces]) for i in (0, 1)])
    turned = _final(method, equation, [p[::-1].copy() for p in parts], "compiled", STEPS, 3)
    wrong["upside down"] = _differences(first, [x.flip(0) for x in turned])
    found = {what: n for what, n in wrong.items() if n}
    why = f"{BATCH} systems, {STEPS} steps; " + (
        "differ: " + ", ".join(f"{what} in {n} numbers" for what, n in found.items())
        if found
        else ", ".join(wrong)
    )
    return Result(
        "compiled loop: the same bits for any threads and batch",
        not found,
        sum(found.values()),
        0,
        "numbers that differ",
        why,
    )


def on_tensors(method: Method, equation: str) -> Result:
    """The tensor loop: torch on 2 threads with the whole batch, and on 1 with its two halves."""
    parts, before, half = _start(equation, MANY), torch.get_num_threads(), MANY // 2 + 1
    try:
        torch.set_num_threads(2)
        whole = _final(method, equation, parts, "python", FEW_STEPS)
        torch.set_num_threads(1)
        halves = [
            _final(method, equation, [p[s] for p in parts], "python", FEW_STEPS)
            for s in (slice(0, half), slice(half, None))
        ]
    finally:
        torch.set_num_threads(before)
    wrong = _differences(whole, [torch.cat([piece[i] for piece in halves]) for i in (0, 1)])
    return Result(
        "tensor loop: the same bits for any threads and batch",
        wrong == 0,
        wrong,
        0,
        "numbers that differ",
        f"{MANY:,} systems, {FEW_STEPS} step",
    )


def measure(method: Method, equation: str) -> list[Result]:
    """Both loops."""
    return [compiled(method, equation), on_tensors(method, equation)]


MUTANTS = {"coefficients that differ from run to run": (Restless(compositions.get("verlet")), "second")}
