"""How far a stack is from the plain network of the same blocks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...stack.arguments import increment
from ...state import FixedPoint
from .depth import Depth, float_state
from .finding import Finding, finding


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
