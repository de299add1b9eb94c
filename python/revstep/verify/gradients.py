"""Reversible gradients against the stored oracle's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import RevstepError
from ..stack import ReversibleStack
from .oracle import stored
from .result import Result, failed


def _gradients(run: Callable[[Tensor], Any], stack: ReversibleStack, x: Tensor, context: Callable[[], Any], seed: int) -> list[Tensor]:
    """Output, input gradient, parameter gradients, and the next random number, of one seeded training pass."""
    leaf = x.detach().clone().requires_grad_()
    parameters = [p for p in stack.parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with context():
            y = run(leaf)
        outputs = y if isinstance(y, tuple) else (y,)
        weights = [torch.randn(t.shape, generator=torch.Generator().manual_seed(seed)).to(t.dtype).to(t.device) for t in outputs]
        grads = torch.autograd.grad(outputs, [leaf, *parameters], weights, allow_unused=True)
        after = torch.rand(1)
    return [*(t.detach() for t in outputs), *(torch.zeros(()) if g is None else g for g in grads), after]


def _states(stack: ReversibleStack, out: Any) -> Any:
    """What a stack returned, without what its blocks returned beside their increments."""
    auxiliary = isinstance(out, tuple) and (stack.readout != "pair" or isinstance(out[0], tuple))
    return out[0] if auxiliary else out


def gradients(stack: ReversibleStack, x: Tensor, *args: Any, context: Callable[[], Any] = contextlib.nullcontext, seed: int = 0, **kwargs: Any) -> Result:
    """Output, gradients of input and parameters, and the random generator left behind: reversible against :func:`stored`.

    Args:
        context: a factory of context managers entered around the forward pass, e.g. ``lambda: torch.autocast("cpu")``.

    Exact formats must agree bit for bit. For float states the figure is reported only (``bound`` is infinite).
    """
    exact = stack.state.exact
    claim = "gradients equal stored autograd bit for bit" if exact else "gradient error against stored autograd measured"
    try:
        ours = _gradients(lambda t: _states(stack, stack(t, *args, **kwargs)), stack, x, context, seed)
        theirs = _gradients(lambda t: stored(stack, t, *args, **kwargs), stack, x, context, seed)
    except RevstepError as e:
        return failed(claim, "relative error", e)
    errors = [0.0 if torch.equal(a, b) else float((a - b).double().norm() / b.double().norm().clamp_min(1e-300)) for a, b in zip(ours, theirs)]
    worst = max(errors, key=lambda e: float("inf") if e != e else e)
    bound = 0.0 if exact else float("inf")
    equal = sum(e == 0.0 for e in errors)
    return Result(claim, worst <= bound, worst, bound, "relative error", f"{equal} of {len(errors)} tensors bit-equal")
