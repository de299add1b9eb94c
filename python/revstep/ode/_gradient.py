"""Gradients through an integration of which no trajectory is kept: backward undoes the steps one by one,
under what surrounded the run, and differentiates each evaluation where it undoes a step with it.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from .._recurrence.ambient import Autocast, Switches
from ..errors import ReconstructionWarning, UnsupportedError
from ._evaluations import Arguments
from ._loop import Walker
from ._problem import Problem, scalar_on
from .methods._base import IDENTITY, Micro

# ------------------------------------------------------------------------------------------------------------
# What surrounds a run beside its arguments: recorded when it begins, entered again on every way back.

#: Every kind of device that autocast knows: a field may compute on another one than the state's.
DEVICE_TYPES = ("cpu", "cuda", "xpu", "mps", "hpu", "xla", "mtia", "maia", "privateuseone")


class Surroundings:
    """Grad mode, inference mode, autocast and the switches of the process as they are at construction.

    The same kernels are chosen under the same surroundings, and only the same kernels give the same bits.
    """

    def __init__(self) -> None:
        self._grad, self._inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        self._autocast = Autocast(DEVICE_TYPES)
        self._switches = Switches()

    @property
    def grad_enabled(self) -> bool:
        """Autograd records what is computed here."""
        return self._grad and not self._inference

    @contextlib.contextmanager
    def now(self) -> Iterator[None]:
        """Around the run itself: all as it is, but without caches of what was computed from weights."""
        with contextlib.ExitStack() as stack:
            _without_caches(stack)
            yield

    @contextlib.contextmanager
    def again(self) -> Iterator[None]:
        """Around a way back: all as it was."""
        switches = copy.copy(self._switches)
        switches.compare()
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(self._inference))
            stack.enter_context(torch.set_grad_enabled(self._grad))
            self._autocast.enter(stack)
            _without_caches(stack)
            switches.enter(stack)
            yield


def _without_caches(stack: contextlib.ExitStack) -> None:
    """Autocast and ``parametrize.cached()`` keep a weight's cast or product with its graph: an evaluation
    that takes it from there would share a graph with the one that made it. The values are the same without.
    """
    stack.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
    torch.set_autocast_cache_enabled(False)
    if parametrize._cache_enabled:  # a global of the process: left alone where nobody uses it
        stack.callback(setattr, parametrize, "_cache_enabled", parametrize._cache_enabled)
        parametrize._cache_enabled = 0


# ------------------------------------------------------------------------------------------------------------
# Gradients through an integration of which no trajectory is kept.
#
# One autograd node for the whole run, made when the run has been taken and is known to depend on something.
# Kept for backward: the two final slots, two checksums a saved state, and carry bits where |alpha| < 1.
# Backward walks the micro-steps down; the one evaluation of Phi that undoes a micro-step is the one
# differentiated: with w the gradient of the moved slot,
#
# g_moved = alpha w, g_other += beta w + J_Phi^T (gamma w), g_h += <w, Phi> dgamma/dh + (through t and Phi),
# g_theta += ...
#
# Rounding to the grid is the identity in backward, as in the stack.


@dataclass
class Job:
    """What backward needs to know of a run that was taken.

    Args:
        problem: the run. arguments: the field's extra arguments. surroundings: what it was evaluated under.
        marks: checksums of the slots at the saved steps (exact formats).
        bytes_saved: kept for backward.
        captures: of :mod:`._replay`, and ``sweep``, the :class:`Sweep` that replays them; None: the field
            itself is evaluated and differentiated.
    """

    problem: Problem
    arguments: Arguments
    surroundings: Surroundings
    marks: dict[int, Tensor]
    bytes_saved: int = 0
    captures: Any = None
    sweep: Callable[..., Sweep] | None = None


class Integrate(torch.autograd.Function):
    """(slot0, slot1, h, t0, args..., leaves...) -> the slots' float values at the saved steps, (M, ...) each.

    The run has been taken: only then is it known which leaves act. ``saved`` are its values, and ``walker``
    stands at its end.
    """

    @staticmethod
    def forward(
        ctx: Any, job: Job, walker: Walker, saved: tuple[Tensor, Tensor], slot0: Tensor, slot1: Tensor,
        h: Tensor | None, t0: Tensor | None, *tensors: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.job = job
        ctx.count = len(job.arguments.tensors)
        ctx.scalars = [None if x is None else (x.dtype, x.device, x.shape) for x in (h, t0)]
        ctx.carries = tuple(walker.carries)
        # A float reconstruction is measured against the start; inference tensors cannot be saved.
        start = (x.clone() if x.is_inference() else x for x in (slot0, slot1))
        origin = () if job.problem.grid.format.exact else tuple(start)
        ctx.save_for_backward(*walker.states, *origin, *tensors)
        job.bytes_saved = sum(
            t.numel() * t.element_size() for t in (*walker.states, *origin, *ctx.carries, *job.marks.values())
        )
        return saved

    @staticmethod
    def backward(ctx: Any, g0: Tensor, g1: Tensor) -> tuple:
        if torch.is_grad_enabled():
            raise UnsupportedError(
                "second derivatives through an integration are not available: leave out create_graph=True"
            )
        job: Job = ctx.job
        slot0, slot1, *tensors = ctx.saved_tensors
        exact = job.problem.grid.format.exact
        origin, tensors = ((), tensors) if exact else (tensors[:2], tensors[2:])
        sweep = (job.sweep or Sweep)(job, ctx, (slot0, slot1), tensors)
        with job.surroundings.again(), torch.no_grad():
            g = sweep.run((g0, g1))
        if not exact:
            _warn_drift(sweep.walker, origin)
        scalars = [
            None if s is None else v.to(s[0]).to(s[1]).reshape(s[2])
            for s, v in zip(ctx.scalars, (sweep.g_h, sweep.g_t0))
        ]
        needs = ctx.needs_input_grad
        rest = [x if n else None for x, n in zip(sweep.g_tensors, needs[7:])]
        return None, None, None, g[0] if needs[3] else None, g[1] if needs[4] else None, *scalars, *rest


def _warn_drift(walker: Walker, origin: Sequence[Tensor]) -> None:
    limit = getattr(walker.problem.grid.format, "max_error", float("inf"))
    error = max(
        float((walker.view(i) - x).abs().max() / x.abs().max()) if x.numel() else 0.0
        for i, x in enumerate(origin)
    )
    if error > limit:
        warnings.warn(
            f"the start rebuilt from the end is off by {error:.3g} times its largest value after"
            f" {walker.problem.steps} steps in {walker.problem.grid.format}: the gradients are those of"
            " another trajectory. Use FixedPoint(64, ...), whose reconstruction is bit-exact, or raise"
            " max_error to accept it",
            ReconstructionWarning,
            stacklevel=2,
        )


class Sweep:
    """The backward pass: states down, gradients down.

    Attributes:
        g: gradients of the two slots where the walk is.
        inputs: what is differentiated beside: the arguments, then the leaves that acted.
        g_tensors: their gradients so far.
    """

    def __init__(self, job: Job, ctx: Any, slots: tuple[Tensor, Tensor], tensors: Sequence[Tensor]):
        p = self.problem = job.problem
        self.job = job
        count = ctx.count
        device = slots[0].device
        # Arguments become leaves of their own (they may have a history); what else acts is a leaf already.
        self.args = [t.detach().requires_grad_() for t in tensors[:count]]
        self.inputs = [*self.args, *tensors[count:]]
        self.g_tensors: list[Tensor | None] = [None] * len(self.inputs)
        self.wants_h, self.wants_t0 = (s is not None for s in ctx.scalars)
        self.g_h, self.g_t0 = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self.walker = self._walker(p, slots, job.arguments.exchanged(self.args), p.last, ctx.carries)
        self.marks = job.marks
        self.g: list[Tensor] = []

    def _walker(self, *args: Any) -> Walker:
        return Walker(*args)

    def run(self, outer: tuple[Tensor, Tensor]) -> list[Tensor]:
        problem, walker = self.problem, self.walker
        self.g = [torch.zeros_like(outer[0][0]), torch.zeros_like(outer[1][0])]
        for row in range(len(problem.saves) - 1, -1, -1):
            while walker.n > problem.saves[row]:
                walker.back(self._evaluate)
            walker.look()
            if self.marks:
                walker.compare(self.marks[problem.saves[row]])
            # A saved state's own gradient joins where the walk has come down to it, not before.
            self.g = [g + o[row] for g, o in zip(self.g, outer)]
        return self.g

    def _evaluate(self, micro: Micro, n: int, x: Tensor) -> Tensor:
        """Phi for the undoing, and the gradient step that belongs to it."""
        i = micro.slot
        j = 1 - micro.slot
        h = self.problem.h
        w = self.g[i]
        gamma = micro.gamma(h)
        if micro.field == IDENTITY:
            value, g_x = x, w * gamma
        else:
            value, g_x = self._vjp(micro, n, x, w if gamma == 1.0 else w * gamma)
        if self.wants_h and micro.gamma_power:
            self.g_h += (w * value).sum(dtype=torch.float64) * micro.gamma_slope(h)
        # All products are of w, the gradient of the state that the micro-step wrote: g[i] is replaced last.
        other = self.g[j] if micro.beta == 0.0 else self.g[j] + w * micro.beta
        self.g[j] = other if g_x is None else other + g_x
        if micro.alpha != 1.0:
            self.g[i] = w * micro.alpha
        return value

    def _vjp(self, micro: Micro, n: int, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor | None]:
        problem, walker = self.problem, self.walker
        walker.count(micro)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            t = walker.time(micro, n)
            h = problem.h
            scalars = []
            if self.wants_h or self.wants_t0:
                t.requires_grad_()
                scalars.append(t)
            if self.wants_h and micro.rk_sign:
                h = scalar_on(t.device, h, t.dtype).requires_grad_()
                scalars.append(h)
            value = problem.phi(micro, x, t, h, walker.args)
            if not value.requires_grad:
                return value, None
            inputs = [x, *scalars, *self.inputs]
            g_x, *rest = torch.autograd.grad(value, inputs, cotangent.to(value.dtype), allow_unused=True)
        for k, g in enumerate(rest[len(scalars) :]):
            if g is not None:
                self.g_tensors[k] = g if self.g_tensors[k] is None else self.g_tensors[k] + g
        if scalars and rest[0] is not None:
            self.g_t0 += rest[0].double()
            self.g_h += rest[0].double() * (n + micro.tau)
        if len(scalars) == 2 and rest[1] is not None:
            self.g_h += rest[1].double()
        return value.detach(), g_x


def attach(
    job: Job,
    walker: Walker,
    saved: tuple[Tensor, Tensor],
    slots: tuple[Tensor, Tensor],
    h: Any,
    t0: Any,
    leaves: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """The values that a run saved, as functions of its inputs and of the leaves that acted.

    Args:
        job: the run. walker: at its end. saved: the float values of the two slots at the saved steps.
        slots: the float values of the start with their graph.
        h, t0: numbers, or scalar tensors to differentiate.
        leaves: tensors that acted on the field's values without being handed to it.
    """
    scalars = [x if isinstance(x, Tensor) and x.requires_grad else None for x in (h, t0)]
    return Integrate.apply(job, walker, saved, *slots, *scalars, *job.arguments.tensors, *leaves)
