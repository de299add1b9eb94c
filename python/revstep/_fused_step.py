"""The optimiser's step inside the backward pass: no moment holds the gradients of all weights.

In ordinary training every gradient exists when backward ends, and the optimiser then uses them all. Here each
parameter is stepped as soon as its gradient is complete, and the gradient is let go:

    p <- optimiser(p, g)        in the hook that torch calls after it has accumulated g; then p.grad = None

What is computed for a parameter is the optimiser's own arithmetic on the same gradient, so without clipping
the weights have the bits that the ordinary step gives them. This holds for optimisers that treat every
parameter by itself (AdamW, SGD, Adafactor and most others).
"""

from __future__ import annotations

import inspect
import math
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError, UnsupportedError

#: Where the norm of the last backward pass is kept: in the optimiser's first group, so that it is saved and
#: loaded with the optimiser's state and a run that goes on clips as one that was not interrupted.
NORM = "fused_step_norm"
#: The optimisers that step inside backward now.
_FUSED: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


class FusedStep:
    """An optimiser that steps inside backward. Made by :func:`fused_step`.

    Attributes:
        optimizer: the optimiser that was given. Its state, groups and learning rates are used and stay its
            own.
        skipped: how many parameters the last backward pass left alone because their gradient was not finite.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clip_norm: float | None, clip_value: float | None):
        self.optimizer = optimizer
        self.skipped = 0
        self._clip_norm = clip_norm
        self._clip_value = clip_value
        self._pass: Callable[[], _Pass | None] = lambda: None
        self._warned = False
        # The same optimiser with one parameter, see _step.
        self._one = type(optimizer).__new__(type(optimizer))
        self._handles = [
            p.register_post_accumulate_grad_hook(lambda p, g=g: self._step(p, g))
            for g, p in _parameters(optimizer)
        ]

    @property
    def norm(self) -> float | None:
        """Norm of all gradients of the last backward pass, before clipping; None before the first."""
        return self.optimizer.param_groups[0].get(NORM)

    def remove(self) -> None:
        """Back to ordinary steps: from now on backward leaves the gradients where it always does."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        _FUSED.discard(self.optimizer)

    def __enter__(self) -> FusedStep:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @torch.no_grad()
    def _step(self, p: Tensor, index: int) -> None:
        """The gradient of ``p``, which is in group ``index``, is complete."""
        current = self._pass()
        if current is None:  # the first of this backward pass
            current = _Pass(self)
            self._pass = weakref.ref(current)
            torch.autograd.Variable._execution_engine.queue_callback(current)
        gradient, p.grad = p.grad, None
        if id(p) in current.stepped:
            raise UnsupportedError(
                "the gradient of one parameter came twice in a backward pass, each time a part of it, as it"
                " does where torch's reentrant checkpointing evaluates a shared layer: use"
                " checkpoint(..., use_reentrant=False), or the ordinary step"
            )
        current.stepped.add(id(p))
        if gradient.is_sparse:
            gradient = gradient.coalesce()
        numbers = gradient._values() if gradient.is_sparse else gradient
        size = _norm(numbers)
        if not math.isfinite(size):
            current.bad += 1
            return
        current.norms.append(size)
        if self._clip_value is not None:
            numbers.clamp_(-self._clip_value, self._clip_value)
        if self._clip_norm is not None and self.norm is not None and self.norm > self._clip_norm:
            gradient.mul_(self._clip_norm / self.norm)
        p.grad = gradient
        try:
            self._optimise(p, self.optimizer.param_groups[index])
        finally:
            p.grad = None

    def _optimise(self, p: Tensor, group: dict[str, Any]) -> None:
        # The optimiser's own step, on a twin that shares its state and has this one parameter. A step that is
        # found on the instance is a scheduler's wrapper, bound to the optimiser with all parameters.
        own = {**group, "params": [p]}
        self._one.__dict__ = {**self.optimizer.__dict__, "param_groups": [own]}
        self._one.__dict__.pop("step", None)
        type(self.optimizer).step(self._one)
        written = [name for name, value in own.items() if name != "params" and value is not group.get(name)]
        if written:
            raise UnsupportedError(
                f"{type(self.optimizer).__name__} keeps {', '.join(written)} for a whole group of parameters,"
                " so its step cannot be taken for one parameter at a time: use it without fused_step"
            )

    def _done(self, over: _Pass) -> None:
        """The backward pass is over."""
        self.optimizer.param_groups[0][NORM] = math.hypot(*over.norms)
        self.skipped = over.bad
        self._pass = lambda: None
        if self.skipped and not self._warned:
            self._warned = True
            warnings.warn(
                f"the gradients of {self.skipped} parameters were not finite: those were not stepped, the"
                " others were. Expected finite gradients; lower the learning rate, or take ordinary steps,"
                " which can be skipped as a whole",
                UserWarning,
                stacklevel=2,
            )


def _norm(numbers: Tensor) -> float:
    """The 2-norm; not finite where a number is not. No copy of them is made unless their squares overflow."""
    wide = None if numbers.dtype.itemsize >= 4 else torch.float32
    size = float(torch.linalg.vector_norm(numbers, dtype=wide))
    if math.isfinite(size):
        return size
    top = float(torch.linalg.vector_norm(numbers, math.inf, dtype=wide))
    return top * float(torch.linalg.vector_norm(numbers / top)) if math.isfinite(top) else top


class _Pass:
    """One backward pass, which torch holds: after an error in it nothing is left of it.

    Attributes:
        norms: of the gradients that were used; bad: how many were not finite.
        stepped: which parameters have had their step.
    """

    def __init__(self, of: FusedStep):
        self.norms: list[float] = []
        self.bad = 0
        self.stepped: set[int] = set()
        self._of = of

    def __call__(self) -> None:
        self._of._done(self)


def fused_step(
    optimizer: torch.optim.Optimizer, *, clip_norm: float | None = None, clip_value: float | None = None
) -> FusedStep:
    """Have ``optimizer`` step inside backward, one parameter at a time, so that no more than a few gradients
    exist at once.

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        revstep.fused_step(optimizer)

    The training loop stays as it is: ``optimizer.step()`` and ``optimizer.zero_grad()`` find no gradients
    then and do nothing, and learning-rate schedulers work as before. The weights get the bits of the ordinary
    step where nothing is clipped. A gradient that is not finite is not used; ``FusedStep.skipped`` counts
    them.

    Args:
        optimizer: any optimiser of torch that treats every parameter by itself.
        clip_norm: gradients are scaled by ``clip_norm / norm`` where the norm of all gradients of the *step
            before* was larger than that, because this step's is not known before its end. The first step is
            not clipped. None: no clipping by norm.
        clip_value: every element of a gradient is brought into ``[-clip_value, clip_value]``. None: it is
            not.

    Returns:
        :class:`FusedStep`: the norm of the last step, and ``remove()`` to go back to ordinary steps.

    Raises:
        ConfigError: a bound that is not positive, no parameter that requires a gradient, or an optimiser that
            steps inside backward already.
        UnsupportedError: an optimiser that needs all gradients at once (it takes a closure, or keeps numbers
            for a whole group); parameters that are spread over processes, or a group of several processes, in
            which each would step by the gradients of its own rows.

    Not for accumulated gradients: every backward pass is a step. Not with a GradScaler: the gradients would
    be used with its scale.
    """
    while not isinstance(optimizer, torch.optim.Optimizer) or hasattr(optimizer, "optimizer"):
        if not hasattr(optimizer, "optimizer"):
            raise ConfigError(f"optimizer is a {type(optimizer).__name__}, expected a torch.optim.Optimizer")
        optimizer = optimizer.optimizer  # accelerate wraps one
    for name, bound in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if bound is not None and not bound > 0:
            raise ConfigError(f"{name} is {bound}, expected a positive number, or None for no clipping")
    if optimizer in _FUSED:
        raise ConfigError(
            f"this {type(optimizer).__name__} steps inside backward already, expected one that does not: call"
            " remove() of the first fused_step before"
        )
    _refuse(optimizer)
    _FUSED.add(optimizer)
    return FusedStep(optimizer, clip_norm, clip_value)


def _parameters(optimizer: torch.optim.Optimizer) -> Iterator[tuple[int, Tensor]]:
    """(number of its group, parameter) of all that get gradients."""
    for number, group in enumerate(optimizer.param_groups):
        yield from ((number, p) for p in group["params"] if p.requires_grad)


def _refuse(optimizer: torch.optim.Optimizer) -> None:
    name = type(optimizer).__name__
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise UnsupportedError(f"{name} evaluates the loss several times a step: use it without fused_step")
    found = [p for _, p in _parameters(optimizer)]
    if not found:
        raise ConfigError(f"{name} has no parameter that requires a gradient, expected at least one")
    if any(hasattr(p, "device_mesh") for p in found):
        raise UnsupportedError(
            "parameters are spread over processes (DTensor), and their gradients are put together behind the"
            " place where fused_step would step: use the ordinary step, whose gradients FSDP2 spreads too"
        )
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        size = torch.distributed.get_world_size()
        if size > 1:
            raise UnsupportedError(
                f"{size} processes train together, and each would step by the gradients of its own rows"
                " before they are averaged: use the ordinary step"
            )
