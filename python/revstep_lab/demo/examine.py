"""The trained stacks taken apart: states rebuilt and compared, gradients against stored autograd, and the
same in float states.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from revstep import verify
from revstep.errors import AmplificationWarning, ReconstructionWarning, RevstepError
from revstep.lm._architectures import GPT
from revstep.lm._parallel import autocast
from revstep.stack import ReversibleStack
from revstep.state import Float

from .depth import Kept, kept_for_backward


@dataclass
class Findings:
    """One trained stack on validation text.

    Attributes:
        kept: bytes for backward; None when it could not be measured.
        reconstruction: every state rebuilt from the last two against the forward pass (torch.equal); None for
            a stored stack.
        gradients_equal: parameter gradients of the loss equal those of stored autograd, bit for bit.
        float_error: worst relative error of a state rebuilt in float32 states; float_cosine: of the parameter
            gradient there to the stored one in the same float states.
        exact_drift, float_drift: relative error of each rebuilt state, by depth from the input.
        failures: sentences on what could not be measured.
    """

    kept: Kept | None = None
    reconstruction: verify.Result | None = None
    gradients_equal: bool | None = None
    float_error: float | None = None
    float_cosine: float | None = None
    exact_drift: list[float] = field(default_factory=list)
    float_drift: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


def examine(model: GPT, tokens: Tensor, targets: Tensor, dtype: torch.dtype) -> Findings:
    """All measurements on one batch, with the model as it is; leaves no gradients behind."""
    found, trunk = Findings(), model.trunk

    def context() -> torch.autocast:
        return autocast(tokens.device, dtype)

    with context():
        x = trunk_input(model, tokens)
    with _attempt(found, "bytes kept"):
        found.kept = kept_for_backward(trunk, x, context)
    if not isinstance(trunk, ReversibleStack):
        return found
    with context():
        found.reconstruction = verify.reconstruction(trunk, x)
    with _attempt(found, "drift"), context():
        found.exact_drift = verify.drift(trunk, x)
    with _attempt(found, "gradients"):
        pair = [_gradient(model, t, tokens, targets, context) for t in (trunk, Stored(trunk))]
        found.gradients_equal = all(torch.equal(a, b) for a, b in zip(*pair))
    with _attempt(found, "float states"), _float_twin(trunk) as twin:
        with context():
            found.float_drift = verify.drift(twin, x)
        found.float_error = worst(found.float_drift)
        found.float_cosine = cosine(
            *(_gradient(model, t, tokens, targets, context) for t in (twin, Stored(twin)))
        )
    return found


def trunk_input(model: GPT, tokens: Tensor) -> Tensor:
    """What the embeddings hand to the trunk, (B, T, C)."""
    caught: list[Tensor] = []
    hook = model.trunk.register_forward_pre_hook(lambda module, args: caught.append(args[0].detach().clone()))
    try:
        with torch.no_grad():
            model.hidden(tokens)
    finally:
        hook.remove()
    return caught[0]


class Stored(nn.Module):
    """A reversible stack run with everything stored: :func:`revstep.verify.stored` as a trunk."""

    def __init__(self, stack: ReversibleStack):
        super().__init__()
        self.stack = stack

    def forward(self, x: Tensor) -> Tensor:
        return verify.stored(self.stack, x)


@contextlib.contextmanager
def _float_twin(stack: ReversibleStack) -> Iterator[ReversibleStack]:
    """The same blocks, scheme and start in float32 states; warnings that they drift are what the figures are
    about.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", AmplificationWarning)
        warnings.simplefilter("ignore", ReconstructionWarning)
        yield ReversibleStack(
            stack.blocks, stack.scheme, state=Float(), start=stack.start, readout=stack.readout
        )


@contextlib.contextmanager
def _attempt(found: Findings, what: str) -> Iterator[None]:
    try:
        yield
    except RevstepError as error:
        found.failures.append(f"{what}: {type(error).__name__}: {error}")


def _gradient(
    model: GPT, trunk: nn.Module, tokens: Tensor, targets: Tensor, context: Callable[[], torch.autocast]
) -> list[Tensor]:
    """Gradient of the loss with respect to the trunk's parameters, the model being run with ``trunk``."""
    parameters, own = list(model.trunk.parameters()), model.trunk
    model.trunk = trunk
    try:
        with torch.random.fork_rng(devices=[]), context():
            torch.manual_seed(0)  # schemes that draw (BDIA) draw the same signs for every trunk
            loss = model(tokens, targets)
        return list(torch.autograd.grad(loss, parameters))
    finally:
        model.trunk = own


def cosine(a: list[Tensor], b: list[Tensor]) -> float:
    """Cosine of the angle between two lists of tensors; NaN when one of them is not finite or zero."""
    u, v = (torch.cat([t.flatten() for t in side]).double() for side in (a, b))
    length = float(u.norm() * v.norm())
    return float(u @ v) / length if length and math.isfinite(length) else float("nan")


def worst(errors: list[float]) -> float:
    """The largest, NaN counting as infinite."""
    return max((math.inf if e != e else e for e in errors), default=0.0)
