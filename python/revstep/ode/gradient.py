"""Gradients through an integration in memory that does not grow with the number of steps.

One autograd node for the whole run. Kept for backward: the two final slots, two checksums a saved state, and carry bits where
|alpha| < 1. Backward walks the micro-steps down; the one evaluation of Phi that undoes a micro-step is the one differentiated:
with w the gradient of the moved slot,

    g_moved = alpha w,   g_other += beta w + J_Phi^T (gamma w),   g_h += <w, Phi> dgamma/dh + (through t and Phi),   g_theta += ...

Rounding to the grid is the identity in backward, as in the stack.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import ReconstructionWarning, UnsupportedError
from ..stack.replay import Autocast, Generators, same_states
from .loop import Walker
from .methods.base import IDENTITY, Micro
from .problem import Problem


@dataclass
class Job:
    """One forward run and what it leaves for backward."""

    problem: Problem
    walker: Walker | None
    arg_leaves: list[Any]
    arg_spec: Any
    arg_tensors: list[int]  # positions in arg_leaves of the tensors that need a gradient
    autocast: Autocast
    progress: Callable[[int, int], None] | None = None
    marks: dict[int, Tensor] | None = None
    bytes_saved: int = 0

    def args(self, tensors: Sequence[Tensor]) -> tuple:
        """The field's arguments with the differentiable ones exchanged for ``tensors``."""
        leaves = list(self.arg_leaves)
        for i, t in zip(self.arg_tensors, tensors):
            leaves[i] = t
        return tree_unflatten(leaves, self.arg_spec)


class Integrate(torch.autograd.Function):
    """(slot0, slot1, h, t0, args..., parameters...) -> the two slots' float values at the saved steps, (M, ...) each."""

    @staticmethod
    def forward(ctx: Any, job: Job, slot0: Tensor, slot1: Tensor, h: Tensor | None, t0: Tensor | None, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        problem, walker = job.problem, job.walker
        job.marks = {}

        def evaluate(micro: Micro, n: int, x: Tensor) -> Tensor:
            # Grad mode as in backward, so that no other kernel is chosen there.
            if micro.field == IDENTITY:
                return x
            with torch.enable_grad():
                return walker.evaluate(micro, n, x.detach().requires_grad_())

        saved: list[tuple[Tensor, Tensor]] = []
        for save in problem.saves:
            while walker.n < save:
                walker.forward(evaluate)
                if job.progress is not None:
                    job.progress(walker.n, problem.steps)
            saved.append((walker.view(0).clone(), walker.view(1).clone()))
            if problem.grid.format.exact:
                job.marks[save] = walker.checksums()
        walker.look()
        ctx.job, ctx.count = job, len(job.arg_tensors)
        ctx.scalars = [None if x is None else (x.dtype, x.device, x.shape) for x in (h, t0)]
        ctx.carries = tuple(walker.carries)
        origin = () if problem.grid.format.exact else (slot0, slot1)  # a float reconstruction is measured against it
        ctx.save_for_backward(*walker.slots, *origin, *tensors)
        job.bytes_saved = sum(t.numel() * t.element_size() for t in (*walker.slots, *origin, *ctx.carries, *job.marks.values()))
        return torch.stack([a for a, _ in saved]), torch.stack([b for _, b in saved])

    @staticmethod
    def backward(ctx: Any, g0: Tensor, g1: Tensor) -> tuple:
        if torch.is_grad_enabled():
            raise UnsupportedError("second derivatives through an integration are not available: leave out create_graph=True")
        job: Job = ctx.job
        slot0, slot1, *tensors = ctx.saved_tensors
        exact = job.problem.grid.format.exact
        origin, tensors = ((), tensors) if exact else (tensors[:2], tensors[2:])
        sweep = _Sweep(job, ctx, (slot0, slot1), tensors)
        with job.autocast():
            g = sweep.run((g0, g1))
        if not exact:
            _warn_drift(sweep.walker, origin)
        scalars = [None if s is None else v.to(s[0]).to(s[1]).reshape(s[2]) for s, v in zip(ctx.scalars, (sweep.g_h, sweep.g_t0))]
        needs = ctx.needs_input_grad
        rest = [x if n else None for x, n in zip(sweep.g_tensors, needs[5:])]
        return None, g[0] if needs[1] else None, g[1] if needs[2] else None, *scalars, *rest


def _warn_drift(walker: Walker, origin: Sequence[Tensor]) -> None:
    limit = getattr(walker.problem.grid.format, "max_error", float("inf"))
    error = max(float((walker.view(i) - x).abs().max() / x.abs().max()) if x.numel() else 0.0 for i, x in enumerate(origin))
    if error > limit:
        warnings.warn(
            f"the start rebuilt from the end is off by {error:.3g} times its largest value after {walker.problem.steps} steps in {walker.problem.grid.format}: "
            "the gradients are those of another trajectory. Use FixedPoint(64, ...), whose reconstruction is bit-exact, or raise max_error to accept it",
            ReconstructionWarning, stacklevel=2,
        )  # fmt: skip


class _Sweep:
    """The backward pass: states down, gradients down."""

    def __init__(self, job: Job, ctx: Any, slots: tuple[Tensor, Tensor], tensors: Sequence[Tensor]):
        p = self.problem = job.problem
        count = ctx.count
        device = slots[0].device
        # Arguments become leaves of their own (they may have a history); parameters are leaves already.
        self.args = [t.detach().requires_grad_() for t in tensors[:count]]
        self.inputs = [*self.args, *tensors[count:]]
        self.g_tensors: list[Tensor | None] = [None] * len(self.inputs)
        self.wants_h, self.wants_t0 = (s is not None for s in ctx.scalars)
        self.g_h, self.g_t0 = (torch.zeros((), dtype=torch.float64, device=device) for _ in range(2))
        self.walker = Walker(p, slots, job.args(self.args), p.steps, ctx.carries)
        self.marks = job.marks
        self.g: list[Tensor] = []

    def run(self, outer: tuple[Tensor, Tensor]) -> list[Tensor]:
        problem, walker = self.problem, self.walker
        self.g = [torch.zeros_like(outer[0][0]), torch.zeros_like(outer[1][0])]
        for row in range(len(problem.saves) - 1, -1, -1):
            while walker.n > problem.saves[row]:
                walker.back(self._evaluate)
            walker.look()
            if self.marks:
                walker.compare(self.marks[problem.saves[row]])
            self.g = [g + o[row] for g, o in zip(self.g, outer)]
        return self.g

    def _evaluate(self, micro: Micro, n: int, x: Tensor) -> Tensor:
        """Phi for the undoing, and the gradient step that belongs to it."""
        i, j, h = micro.slot, 1 - micro.slot, self.problem.h
        w = self.g[i]
        gamma = micro.gamma(h)
        if micro.field == IDENTITY:
            value, g_x = x, w * gamma
        else:
            value, g_x = self._vjp(micro, n, x, w if gamma == 1.0 else w * gamma)
        if self.wants_h and micro.gamma_power:
            self.g_h += (w * value).sum(dtype=torch.float64) * micro.gamma_slope(h)
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
            t, h, scalars = walker.time(micro, n), problem.h, []
            if self.wants_h or self.wants_t0:
                t.requires_grad_()
                scalars.append(t)
            if self.wants_h and micro.rk_sign:
                h = torch.tensor(h, dtype=t.dtype, device=t.device, requires_grad=True)
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


def differentiable(
    problem: Problem, states: Sequence[Tensor], slots: tuple[Tensor, Tensor], h: Any, t0: Any, args: Sequence[Any], modules: Sequence[Any], **job: Any
) -> Any:
    """Run with a graph. Returns ``(saved slot 0, saved slot 1, walker, job)``.

    ``states``: the encoded start; ``slots``: its float values with their graph. ``h``, ``t0``: numbers, or scalar tensors to differentiate. ``modules``: the field's
    functions, whose parameters (and leaf tensors they close over) are differentiated.

    Raises:
        UnsupportedError: the field draws random numbers, or closes over a tensor that has a history.
    """
    leaves, spec = tree_flatten(tuple(args))
    positions = [i for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad]
    walker = Walker(problem, states, args)
    arg_tensors = [leaves[i] for i in positions]
    devices = [slots[0].device]
    record = Job(problem, walker, leaves, spec, positions, Autocast(sorted({"cpu", devices[0].type})), **job)
    parameters = _parameters(record, modules, arg_tensors)
    generators = Generators(devices)
    before = generators.get()
    scalars = [x if isinstance(x, Tensor) and x.requires_grad else None for x in (h, t0)]
    out = Integrate.apply(record, *slots, *scalars, *arg_tensors, *parameters)
    if not same_states(before, generators.get()):
        raise UnsupportedError("the field draws random numbers: its re-evaluation in backward would draw others. Draw them before and pass them in args=")
    record.walker = None  # the node keeps what it needs
    return *out, walker, record


def _parameters(job: Job, modules: Sequence[Any], arg_tensors: Sequence[Tensor]) -> list[Tensor]:
    """Leaf tensors to differentiate: parameters of modules, and leaves met in the graph of one evaluation (closures)."""
    problem, walker = job.problem, job.walker
    found = {id(p): p for m in modules if isinstance(m, nn.Module) for p in m.parameters() if p.requires_grad}
    for micro in {(m.field, m.rk_sign): m for m in problem.micros(0) if m.field != IDENTITY}.values():
        with torch.enable_grad():
            oldest = (torch.ones((), requires_grad=True) * 1.0).grad_fn._sequence_nr()
            x, *stand_ins = (t.detach().requires_grad_() for t in (walker.view(1 - micro.slot), *arg_tensors))
            value = problem.phi(micro, x, walker.time(micro, 0), problem.h, job.args(stand_ins))
        own = {id(t) for t in (x, *stand_ins)}
        found |= {id(leaf): leaf for leaf in _leaves(value.grad_fn, oldest) if id(leaf) not in own}
    return list(found.values())


def _leaves(root: Any, oldest: int) -> list[Tensor]:
    seen, queue, out = set(), [root] if root is not None else [], []
    while queue:
        node = queue.pop()
        if node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if variable is not None:
            out.append(variable)
            continue
        if node._sequence_nr() < oldest:
            raise UnsupportedError(
                f"the field closes over a tensor that was computed with gradients before the integration ({node.name()}): pass it through args=, "
                "whose gradients flow"
            )
        queue += [n for n, _ in node.next_functions if n is not None]
    return out
