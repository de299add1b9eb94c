"""Are the rebuilt states the computed ones, and if not, how far off?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import RevstepError
from ..stack import ReversibleStack
from .result import Result, failed


def drift(stack: ReversibleStack, x: Tensor, *args: Any, **kwargs: Any) -> list[float]:
    """Relative error (2-norm) of each rebuilt state, by depth from s[0]; 0.0 means bit-equal. Any state format."""
    checks, stack.checks = stack.checks, False
    try:
        states = stack.states(x, *args, **kwargs)
        rebuilt = stack.reconstruct(states.last_two)
    finally:
        stack.checks = checks
    return [0.0 if torch.equal(a, b) else _relative(a, b) for a, b in zip(states, rebuilt)]


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    norm = float(a.norm())
    return float((b - a).norm()) / norm if norm else float("inf")


def reconstruction(stack: ReversibleStack, x: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Every state rebuilt from the last two, against the forward pass. Exact formats must match bit for bit.

    For float states the claim is only that the error is measured (``bound`` is infinite); the figure is the worst state's
    relative error.
    """
    claim = "every state rebuilt bit for bit" if stack.state.exact else "reconstruction error measured"
    try:
        errors = drift(stack, x, *args, **kwargs)
    except RevstepError as e:
        return failed(claim, "relative error", e)
    worst = max(errors, key=lambda e: float("inf") if e != e else e)
    wrong = sum(e != 0.0 for e in errors)
    bound = 0.0 if stack.state.exact else float("inf")
    return Result(claim, worst <= bound, worst, bound, "relative error", f"{len(errors) - wrong} of {len(errors)} states bit-equal")
