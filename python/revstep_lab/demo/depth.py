"""What the demo of stacks measures of memory and exactness: bytes kept for backward against depth, and the
trained stacks taken apart.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from revstep import verify
from revstep.errors import AmplificationWarning, ConfigError, ReconstructionWarning, RevstepError
from revstep.lm._architectures import GPT, Block, make_trunk
from revstep.lm._parallel import autocast
from revstep.stack import Report, ReversibleStack
from revstep.state import Float

from .settings import Settings

# ------------------------------------------------------------------------------------------------------------
# Bytes kept for backward, measured the same way for every trunk.


@dataclass(frozen=True)
class Kept:
    """What one forward pass of a trunk leaves behind for its backward pass.

    Attributes:
        autograd: bytes of the tensors autograd saved, each storage once, parameters not counted.
        tape: bytes that a reversible stack keeps beside autograd: checksums, carries, generator records; 0
            for other trunks.
    """

    autograd: int
    tape: int

    @property
    def total(self) -> int:
        return self.autograd + self.tape

    def to_dict(self) -> dict:
        return asdict(self) | {"total": self.total}


def kept_for_backward(
    trunk: nn.Module, x: Tensor, context: Callable[[], Any] = contextlib.nullcontext
) -> Kept:
    """Run ``trunk(x)`` forward and backward once and count.

    Saved-tensor hooks around the forward pass see what autograd saves; a reversible stack's report says what
    it keeps in all. Both see the states that the stack's gate node saves: they are counted once.

    Args:
        context: a factory of context managers entered around the forward pass, e.g. ``lambda:
            torch.autocast("cpu")``.

    Raises:
        ConfigError: a reversible stack that made no report (``checks=False``): its carries could not be
            counted.
    """
    stack = isinstance(trunk, ReversibleStack)
    return saved_by(
        lambda: trunk(x.detach().requires_grad_()),
        list(trunk.parameters()),
        lambda: trunk.report if stack else None,
        context,
        stack,
    )


def saved_by(
    forward: Callable[[], Tensor],
    parameters: list[Tensor],
    report: Callable[[], Report | None],
    context: Callable[[], Any] = contextlib.nullcontext,
    reversible: bool = True,
) -> Kept:
    """The same for any ``forward()`` -> tensor, whose ``parameters`` are not counted; ``report()`` is that of
    its stack, None where it has none.

    Raises:
        ConfigError: ``reversible``, and backward made no new report.
    """
    addresses = {p.untyped_storage().data_ptr() for p in parameters}
    seen: dict[int, Tensor] = {}  # by storage; the tensor is held, so that its memory is not given to another

    def pack(t: Tensor) -> Tensor:
        seen.setdefault(t.untyped_storage().data_ptr(), t)
        return t

    before = report()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), context():
        y = forward()
    autograd = sum(t.untyped_storage().nbytes() for address, t in seen.items() if address not in addresses)
    both = sum(t.numel() * t.element_size() for t in _gate_tensors(y))
    seen.clear()
    try:
        y.float().sum().backward()
    finally:
        for p in parameters:
            p.grad = None
    if not reversible:
        return Kept(autograd, 0)
    after = report()
    if after is None or after is before:
        raise ConfigError(
            "the stack made no report in backward, so what it keeps cannot be counted: build it with"
            " checks=True"
        )
    return Kept(autograd, after.bytes_saved - both)


def _gate_tensors(y: Tensor) -> list[Tensor]:
    """Tensors saved by the node through which a reversible stack hands its last states to its tape; none for
    other trunks.
    """
    nodes, visited = [y.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in visited:
            continue
        if node.name() == "GateBackward":
            return list(node.saved_tensors)
        visited.add(node)
        nodes += [parent for parent, _ in node.next_functions]
    return []


# ------------------------------------------------------------------------------------------------------------
# Bytes kept for backward against depth: plain, each block checkpointed, and each reversible scheme. Measured,
# not computed.

DEPTHS = (4, 8, 16, 32, 64)
#: Sequences and tokens of one: small, since the ratios do not depend on them.
SHAPE = (1, 64)
#: The block's weights, of nn.Linear's own initialisation, times this: 64 steps of Leapfrog add some 2000
#: increments up.
WEIGHTS = 0.1


def memory_by_depth(settings: Settings, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """``{"shape", "depths", "bytes": {trunk: [...]}, "failures": {trunk: why}}``; one block is used at every
    depth, so that only activations can grow.

    A scheme given with a list of coefficients has one depth only and is left out.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    x = torch.randn(*SHAPE, settings.width, generator=generator).to(device)
    block = Block(settings.model(vocab=2)).to(device)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(WEIGHTS)
    found: dict[str, list[int]] = {}
    failures: dict[str, str] = {}
    for name in ("plain", "checkpoint", *settings.reversible()):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", AmplificationWarning)
                trunks = [make_trunk([block] * layers, name) for layers in DEPTHS]
        except ConfigError:
            continue
        try:
            found[name] = [
                kept_for_backward(trunk, x, lambda: autocast(device, dtype)).total for trunk in trunks
            ]
        except RevstepError as error:
            failures[name] = f"{type(error).__name__}: {error}"
    return {"shape": [*SHAPE, settings.width], "depths": list(DEPTHS), "bytes": found, "failures": failures}


# ------------------------------------------------------------------------------------------------------------
# The trained stacks taken apart: states rebuilt and compared, gradients against stored autograd, and the
# same in float states.


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
