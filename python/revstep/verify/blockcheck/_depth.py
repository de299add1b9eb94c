"""What many of a user's blocks in a row do: what they keep alive, how far the stack is from the plain
network, what float states lose, what fixed point keeps, and how large the states grow.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import AmplificationWarning, ReconstructionWarning
from ...schemes import Scheme
from ...stack import ReversibleStack
from ...stack._arguments import increment
from ...stack._outside import Outside
from ...state import FixedPoint, Float, StateFormat
from .._checks import drift, gradients, reconstruction
from ._load import Finding, Subject, described, finding

# ------------------------------------------------------------------------------------------------------------
# What a block keeps alive outside of the tensors that autograd saves.

CHECK, CLAIM = "memory", "keeps nothing outside of the tensors that autograd saves"


def outside(make: Callable[[], nn.Module], x: Tensor) -> Finding:
    """Bytes that one more evaluation leaves alive, beside auxiliary outputs, parameters and buffers.

    The second evaluation of a module is measured: a table that it makes once, at the first, does not grow.
    """
    block = make()
    leaf = x.detach().clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block(leaf.clone())
        torch.manual_seed(0)
        with Outside(block.parameters()) as found, torch.enable_grad():
            f, aux = increment(block(leaf.clone()))
    graph = f.grad_fn  # keeps the graph, and what hangs on it; the output itself goes, as in a stack
    del f
    alive = found.nbytes([aux, *block.parameters(), *block.buffers()])
    del graph
    times = alive / max(1, x.numel() * x.element_size())
    each = f"{alive:,} bytes stay alive after one evaluation, {times:.2g} times its input"
    return finding(
        CHECK,
        CLAIM,
        alive == 0,
        each if alive else "",
        (
            "a stack rebuilds what autograd saved and nothing else, so this memory grows with depth: in an "
            "autograd.Function use ctx.save_for_backward(x) instead of ctx.x = x, and keep no activation on "
            "the module, in a hook's list or in a closure"
            if alive
            else ""
        ),
        measured=float(alive),
        unit="bytes",
    )


# ---- How far a stack is from the plain network of the same blocks ----


def plain_network(depth: Depth, fmt: FixedPoint | None, looks_residual: bool) -> Finding:
    """The stack's output beside that of ``x = x + f(x)``, layer by layer; a figure, no verdict.

    Args:
        fmt: the format to run the stack in; None: floats, for states that no format holds.
        looks_residual: the block returns x + f(x), so the network as it is written is ``x = block(x)``.
    """
    stack = depth.stack(float_state(depth.subject.x) if fmt is None else fmt)
    two = depth.scheme.halves == 2
    blocks = [half for block in stack.blocks for half in (block.halves() if two else (block,))]
    x = depth.subject.x
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        run = stack.begin(x)
        for _ in blocks:
            run.step((), {})
        ours = run.end("last")
        torch.manual_seed(0)
        theirs = x
        for block in blocks:
            f = increment(block(theirs))[0]
            theirs = f if looks_residual else theirs + f
    deviation = _relative(ours, theirs)
    network = "x = block(x), the network as it is written" if looks_residual else "x = x + f(x)"
    why = f"the output is off by {deviation:.2g} times its size after {len(depth.layers)} layers"
    again = "the stack adds the state once more to x + f(x): see skip connection, and measure again"
    advice = again if looks_residual else ""
    claim = f"{depth.scheme} beside the plain network {network}"
    figure = {"measured": deviation, "bound": math.inf, "unit": "relative deviation"}
    return finding("plain network", claim, True, why, advice, **figure)


def _relative(ours: Tensor, theirs: Tensor) -> float:
    ours, theirs = ours.double(), theirs.double()
    size = float(theirs.norm())
    return float((ours - theirs).norm()) / size if size else math.inf


# ------------------------------------------------------------------------------------------------------------
# Many of the user's blocks in a row: what float states lose, what fixed point keeps, and how large the states
# grow.

#: The range should hold this many times the largest state of untrained weights: trained ones are larger.
HEADROOM = 8.0
#: An increment of fewer grid steps than this (its root mean square) is rounded to less than two digits.
FINEST = 128.0
#: Growth of the largest state a layer beyond which more layers soon leave any range.
GROWTH = 1.5


@dataclass(frozen=True)
class Depth:
    """Layers of a subject under one scheme."""

    subject: Subject
    scheme: Scheme
    layers: list

    def stack(self, state: StateFormat, layers: int | None = None) -> ReversibleStack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AmplificationWarning)
            return ReversibleStack(self.layers[:layers], self.scheme, state=state)


def contexts(x: Tensor) -> dict[str, Callable[[], Any]]:
    """The precisions a block is measured in, by name: as it is, and under autocast for float32 blocks."""
    kind = x.device.type
    own = str(x.dtype).removeprefix("torch.")
    if x.dtype != torch.float32:
        return {own: contextlib.nullcontext}
    return {
        own: contextlib.nullcontext, "bf16 autocast": lambda: torch.autocast(kind, dtype=torch.bfloat16),
        "fp16 autocast": lambda: torch.autocast(kind, dtype=torch.float16),
    }  # fmt: skip


def doublings(layers: int) -> list[int]:
    return sorted({min(2**k, layers) for k in range(layers.bit_length() + 1)})


def float_state(x: Tensor) -> Float:
    return Float(torch.float64 if x.dtype == torch.float64 else torch.float32, max_error=math.inf)


def drift_table(
    depth: Depth, fmt: FixedPoint | None
) -> tuple[list[int], dict[str, list[float | None]], list[str]]:
    """Worst relative error of a rebuilt state by number of layers: float states in each precision, fixed
    point in the worst of them.

    None where it could not be measured; the sentences say why.
    """
    x = depth.subject.x
    depths = doublings(len(depth.layers))
    columns: dict[str, list[float | None]] = {}
    notes: list[str] = []
    for name, context in contexts(x).items():
        columns[f"float states, {name}"] = [
            _error(depth, float_state(x), d, context, f"{name}, {d} layers", notes) for d in depths
        ]
    if fmt is not None:
        every = [
            [
                _error(depth, fmt, d, context, f"fixed point, {name}, {d} layers", notes)
                for name, context in contexts(x).items()
            ]
            for d in depths
        ]
        columns["fixed point, all of these"] = [
            max((e for e in row if e is not None), default=None) for row in every
        ]
    return depths, columns, notes


def _error(
    depth: Depth, fmt: StateFormat, layers: int, context: Callable[[], Any], what: str, notes: list[str]
) -> float | None:
    try:
        with torch.random.fork_rng(), context(), warnings.catch_warnings():
            warnings.simplefilter("ignore", ReconstructionWarning)
            torch.manual_seed(0)
            errors = drift(depth.stack(fmt, layers), depth.subject.x)
    except Exception as error:
        notes.append(f"{what}: {described(error)}")
        return None
    return max(errors, key=lambda e: math.inf if e != e else e)


# ---- range ----


@dataclass(frozen=True)
class Range:
    """``largest`` state by index from the input on, and the format to use (None: no format holds them)."""

    largest: list[float]
    increment: float
    format: FixedPoint | None

    @property
    def top(self) -> float:
        return max(self.largest)

    @property
    def growth(self) -> float:
        """Mean factor a step over the second half, where the start is forgotten."""
        half = len(self.largest) // 2
        steps = len(self.largest) - 1 - half
        return (
            (self.largest[-1] / self.largest[half]) ** (1 / steps)
            if steps and self.largest[half] > 0 and math.isfinite(self.largest[-1])
            else 1.0
        )


def recommend(largest: float, headroom: float = HEADROOM) -> FixedPoint | None:
    """The finest format whose range is ``headroom`` times ``largest``; int32 where one does."""
    if not math.isfinite(largest):
        return None
    for fmt in [FixedPoint(32, f) for f in range(20, 11, -1)] + [
        FixedPoint(64, f) for f in range(32, -1, -1)
    ]:
        if fmt.limit >= headroom * largest:
            return fmt
    return None


def measure_range(depth: Depth) -> Range:
    """States in float64, which leaves no range; the blocks compute in their own precision."""
    x = depth.subject.x
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        states = depth.stack(Float(torch.float64, max_error=math.inf)).states(x)
    largest = [float(s.abs().max()) if bool(torch.isfinite(s).all()) else math.inf for s in states]
    moves = [float((b - a).square().mean().sqrt()) for a, b in itertools.pairwise(states[1:])]
    finite = [m for m in moves if math.isfinite(m)]
    return Range(largest, min(finite, default=0.0), recommend(max(largest)))


def range_finding(measured: Range, layers: int, scheme: str) -> Finding:
    check = "range"
    default = FixedPoint()
    claim = f"states of {layers} layers stay within {default}, +-{default.limit:.0f} ({scheme})"
    headroom = default.limit / measured.top if measured.top else math.inf
    why = (
        f"largest state {measured.top:.4g}, headroom {headroom:.3g}, growing {measured.growth:.2f} times a"
        " step towards the end"
    )
    advice = []
    if headroom < HEADROOM:
        advice.append(
            f"use {measured.format}, which holds +-{measured.format.limit:.4g} on a grid of"
            f" {measured.format.grid:.2g}"
            if measured.format
            else "no fixed-point format holds such states"
        )
    if measured.growth > GROWTH or measured.format is None:
        advice.append(
            "the outputs are too large for their depth: normalise the block's input (pre-norm), scale the"
            " initial weights of its last layer by 1/sqrt(layers), or give the scheme a smaller h"
        )
    fmt = measured.format or default
    if 0 < measured.increment < FINEST * fmt.grid:
        advice.append(
            f"the smallest layer moves the state by only {measured.increment / fmt.grid:.2g} grid steps: use"
            " more fractional bits, for example FixedPoint(bits=64, frac_bits=40)"
        )
    return finding(
        check,
        claim,
        headroom >= 1.0,
        why,
        advice,
        measured=measured.top,
        bound=default.limit,
        unit="largest state",
    )


# ---- exactness ----


def exactness(depth: Depth, fmt: FixedPoint) -> tuple[list[Finding], list[str]]:
    """Bit-exact reconstruction and gradients in fixed point, in every precision this device runs the block
    in.
    """
    found, notes = [], []
    x = depth.subject.x
    for name, context in contexts(x).items():
        stack = depth.stack(fmt)
        try:
            with torch.random.fork_rng(), context():
                torch.manual_seed(0)
                rebuilt = reconstruction(stack, x)
            grads = gradients(depth.stack(fmt), x, context=context)
        except Exception as error:
            if not name.endswith("autocast"):
                raise
            # A kernel that this device does not have.
            notes.append(f"{name}: not measured, the block raised {described(error)}")
            continue
        advice = (
            "the block alone keeps the rules, so a kernel is not deterministic at this depth, or layers share"
            " something: torch.use_deterministic_algorithms(True) names the kernel"
        )
        where = f"{len(depth.layers)} layers, {depth.scheme.name}, {name}"
        found += [
            Finding(
                check,
                type(r)(f"{r.claim} ({where})", r.ok, r.measured, r.bound, r.unit, r.why),
                () if r.ok else (advice,),
            )
            for check, r in (("reconstruction", rebuilt), ("gradients", grads))
        ]
    return found, notes
