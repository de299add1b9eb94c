"""The loop over micro-steps on tensors, for any torch or NumPy field on any device, forwards and backwards;
where it is asked to, it goes on without the members of a batch that fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import ops
from .._recurrence.walk import Ledger, Pair
from ..errors import ConfigError, ReconstructionError, UnsupportedError
from ..schemes._base import Coefficients
from ..state import StateFormat
from ._overflow import Moment, overflow
from ._problem import Grid, Problem, scalar_on
from ._records import looked_at
from ._watch import Watch
from .methods._base import IDENTITY, Micro

# ------------------------------------------------------------------------------------------------------------
# Members of a batch that fail while the others go on, in the loop on tensors.


class Members:
    """Which members are dead. A dead member is zero in both slots, and nothing is added to it.

    Args:
        shape: of the state.
        event_dims: trailing axes that are one member.

    Attributes:
        dead: bool, of the leading axes.
        failed: the step at which each dead member failed, by its index.
    """

    def __init__(self, shape: Sequence[int], event_dims: int):
        lead = tuple(shape[: len(shape) - event_dims])
        if not lead:
            raise ConfigError(
                f"on_failure='drop' drops members of a batch, and the state of shape {tuple(shape)} is a"
                " single system: leave it out, or add a leading axis"
            )
        self.dead = torch.zeros(lead, dtype=torch.bool)
        self.event_dims = event_dims
        self.failed: dict[tuple[int, ...], int] = {}

    def _mask(self, like: Tensor) -> Tensor:
        self.dead = self.dead.to(like.device)
        return self.dead.reshape(*self.dead.shape, *(1,) * self.event_dims)

    def without(self, x: Tensor) -> Tensor:
        """``x`` with zeros where members are dead."""
        return torch.where(self._mask(x), torch.zeros_like(x), x) if self.failed else x

    def fail(
        self, n: int, slots: list[Tensor], micro: Micro, value: Tensor, gamma: float, fmt: StateFormat
    ) -> bool:
        """Take out the members that a micro-step of step ``n`` cannot hold. False where none is found.

        Args:
            slots: before the micro-step; those of the members that fail become zero.
            value: what the micro-step adds, in units of the scale and without gamma.
        """
        own, other = (fmt.decode(slots[k], torch.float64) for k in (micro.slot, 1 - micro.slot))
        added = value.double() * gamma
        total = micro.alpha * own + micro.beta * other + added
        limit = fmt.limit if fmt.exact else float("inf")
        # NaN is not below it.
        fits = (total.abs() < limit * (1 - 2.0**-40)) & (added.abs() < limit * (1 - 2.0**-40))
        axes = tuple(range(total.ndim - self.event_dims, total.ndim))
        bad = (~fits).any(axes) if axes else ~fits
        bad &= ~self.dead.to(bad.device)
        if not bool(bad.any()):
            return False
        self.dead = self.dead.to(bad.device) | bad
        self.failed |= {tuple(index): n for index in bad.nonzero().tolist()}
        for k in (0, 1):
            slots[k] = self.without(slots[k])
        return True


# ------------------------------------------------------------------------------------------------------------
# The loop over micro-steps on tensors: any torch or NumPy field, any device, forwards and backwards.

#: Statistics are looked at after each micro-step on the CPU, elsewhere after this many (each look waits for
#: the device).
_LOOK_EVERY = 128

Evaluate = Callable[[Micro, int, Tensor], Tensor]
#: (walker, micro-step, n, x) -> Phi, detached. See :mod:`._evaluations`.
Ask = Callable[["Walker", Micro, int, Tensor], Tensor]


@dataclass(frozen=True)
class _Plan:
    """What a walker knows of a micro-step before it takes it.

    Attributes:
        c: the coefficients, for increments in units of the slot's scale.
        carries: it leaves carry bits.
        folded: the coefficients for increments in the units of the equation; None: they are converted.
        bound: the steps bound so far, by the dtype of the increment.
    """

    c: Coefficients
    carries: bool
    folded: Coefficients | None
    bound: dict[torch.dtype, ops.BoundStep]


#: A unit of at most 2**16, at least 2**-16, goes into gamma. (With one beyond, a float32 increment could
#: leave its range where its share of the unit does not, or the other way.)
_FOLDED = 2.0**16


def _folded(grid: Grid, i: int, c: Coefficients) -> Coefficients | None:
    """``gamma / scale``: a product with a power of two commutes with rounding, so that no bit changes."""
    scale = grid.scales[i]
    if not isinstance(scale, float) or not 1 / _FOLDED <= scale <= _FOLDED:
        return None
    return c._replace(gamma=c.gamma / scale)


def plainly(walker: Walker, micro: Micro, n: int, x: Tensor) -> Tensor:
    """Phi of a micro-step as the field gives it, in the grad mode of the caller."""
    problem = walker.problem
    return problem.phi(micro, x.detach(), walker.time(micro, n), problem.h, walker.args).detach()


class Walker(Pair):
    """Two states that walk along the steps, micro-step by micro-step.

    Args:
        ask: how the field is evaluated.
        watch: records what the grid does on the way up; None: nothing is recorded.
        members: what becomes of members of a batch that fail; None: the run ends.

    Attributes:
        n: the step at which the states are.
        carries: packed carry bits of the micro-steps taken so far that need them.
        evaluations: of the functions, counting one of each stage of a Runge-Kutta increment.
        ledger: what the kernels said of the micro-steps taken.
    """

    def __init__(
        self,
        problem: Problem,
        slots: Sequence[Tensor],
        args: Sequence[Any],
        n: int = 0,
        carries: Sequence[Tensor] = (),
        ask: Ask = plainly,
        watch: Watch | None = None,
        members: Members | None = None,
    ):
        super().__init__(slots, problem.grid.format.frac_bits)
        self.watch = watch
        self.members = members
        self.problem = problem
        self.args = args
        self.n = n
        self.carries = list(carries)
        self.evaluations = 0
        self._ask = ask
        self._versions = [0, 0]
        self._twice = _served_twice(problem)
        self._cache: dict[tuple[int, int], tuple[float, Tensor]] = {}
        self._at_once = slots[0].device.type == "cpu"
        # Where torch would only pass the call on; members are taken out between two tries of a step.
        plain = type(slots[0]) is Tensor and members is None and not torch.compiler.is_compiling()
        self._binds = self._at_once and plain
        self._plans: dict[Micro, _Plan] = {}
        self._none = slots[0].new_empty((0, 0), dtype=torch.int32)
        self.ledger = Ledger()

    def view(self, i: int) -> Tensor:
        """Float values of slot ``i``."""
        view = self.views[i]
        if view is None:
            view = self.problem.grid.view(i, self.states[i], self.problem.dtype)
            view = view.clone() if view is self.states[i] else view  # fields see it, and may keep it
            self.views[i], self._versions[i] = view, 0 if view.is_inference() else view._version
        elif not view.is_inference() and view._version != self._versions[i]:
            raise UnsupportedError(
                f"the field changed an argument of an earlier call in place, before step {self.n}: the step "
                "still needs it. Let the field keep a copy (y.clone())"
            )
        return view

    def time(self, micro: Micro, n: int) -> Tensor:
        """When a micro-step of step ``n`` is evaluated: a 0-d float64 tensor, whatever the state's dtype."""
        return scalar_on(self.states[0].device, self.problem.time(n, micro.tau))

    def evaluate(self, micro: Micro, n: int, x: Tensor) -> Tensor:
        """Phi of a micro-step; a second request at the same time and unchanged state is served from the
        first.
        """
        if micro.field == IDENTITY:
            return x
        key = (micro.field, 1 - micro.slot)
        if key not in self._twice:
            self.count(micro)
            return self._ask(self, micro, n, x)
        t = self.problem.time(n, micro.tau)
        hit = self._cache.get(key)
        if hit is not None and hit[0] == t and not micro.rk_sign:
            return hit[1]
        self.count(micro)
        # Cloned: the field may return the same buffer again, or its argument.
        value = self._ask(self, micro, n, x).clone()
        self._cache[key] = (t, value)
        return value

    def count(self, micro: Micro) -> None:
        self.evaluations += len(self.problem.method.tableau.b) if micro.rk_sign else 1

    def forward(self, evaluate: Evaluate | None = None) -> None:
        """One step up."""
        evaluate = evaluate or self.evaluate
        looking = self.watch is not None and looked_at(self.n)
        for k, micro in enumerate(self.problem.micros(self.n)):
            i = micro.slot
            j = 1 - micro.slot
            grid = self.problem.grid
            value = evaluate(micro, self.n, self.view(j))
            plan = self._plan(micro)
            if looking:
                self.watch.see(i, grid.into(i, value), plan.c.gamma, grid.format)
            before = tuple(self.states) if self._at_once else None
            if self._binds:
                carry, stats = self._take_bound(micro, plan, value)
            elif self.members is None:
                carry, stats = self.take(i, plan.c, grid.into(i, value))
            else:
                carry, stats = self._take_alive(micro, plan.c, grid.into(i, value))
            if plan.carries:
                self.carries.append(carry)
            self._moved(i, stats, k, before)
        if looking and self.watch.sizes is not None:
            self.look()
            self.watch.grow((self.view(0), self.view(1)))
            self.watch.far((self.view(0) - self.view(1)).abs(), self.n)
            self.watch.check_copies(self.problem)
        self.n += 1

    def _plan(self, micro: Micro) -> _Plan:
        found = self._plans.get(micro)
        if found is None:
            grid, c = self.problem.grid, micro.coefficients(self.problem.h)
            carries = bool(grid.format.exact and micro.carry_bits)
            found = self._plans[micro] = _Plan(c, carries, _folded(grid, micro.slot, c), {})
        return found

    def _bind(self, micro: Micro, plan: _Plan, value: Tensor) -> tuple[ops.BoundStep, Tensor]:
        """The step of a value as the function gave it, and the value as this step takes it."""
        i = micro.slot
        grid, state = self.problem.grid, self.states[i]
        if plan.folded is None:
            value = grid.into(i, value)
        found = plan.bound.get(value.dtype)
        if found is None:
            dtype = self.problem.dtype if grid.format.exact and self.problem.dtype != state.dtype else None
            c = plan.folded or plan.c
            found = plan.bound[value.dtype] = ops.BoundStep(state, value, c, grid.format.frac_bits, dtype)
        return found, value

    def _row(self) -> tuple[Any, int]:
        """Where a kernel writes its statistics, and the address of that."""
        stats = torch.empty(4, dtype=torch.int64)
        return stats, stats.data_ptr()

    def _take_bound(self, micro: Micro, plan: _Plan, value: Tensor) -> tuple[Tensor, Any]:
        """:meth:`take`, with the view in the same pass."""
        i = micro.slot
        step, value = self._bind(micro, plan, value)
        stats, address = self._row()
        view, self.states[i], carry = step.step(self.states[i], self.states[1 - i], value, address)
        self._viewed(i, view)
        return carry, stats

    def _undo_bound(self, micro: Micro, plan: _Plan, value: Tensor, carry: Tensor) -> Any:
        """:meth:`undo`, with the view in the same pass."""
        i = micro.slot
        step, value = self._bind(micro, plan, value)
        stats, address = self._row()
        view, self.states[i] = step.inverse(self.states[i], self.states[1 - i], value, carry, address)
        self._viewed(i, view)
        return stats

    def _viewed(self, i: int, view: Tensor | None) -> None:
        """The kernel wrote ``view`` of the new state of slot ``i``, or nothing."""
        self.views[i] = None if view is None else self.problem.grid.scaled(i, view)
        self._versions[i] = 0

    def _take_alive(self, micro: Micro, c: Coefficients, value: Tensor) -> tuple[Tensor, Tensor]:
        """:meth:`take`, again without the members that it cannot hold, as long as there are any."""
        i = micro.slot
        while True:
            before = self.states[i]
            value = self.members.without(value)
            carry, stats = self.take(i, c, value)
            if not ops.read_stats(stats)[0].bad:
                return carry, stats
            # Put back first: which members fail is decided by the sum, of the state before the step.
            moved, self.states[i] = self.states[i], before
            if not self.members.fail(self.n, self.states, micro, value, c.gamma, self.problem.grid.format):
                self.states[i] = moved
                return carry, stats
            self.views = [None, None]

    def back(self, evaluate: Evaluate | None = None) -> None:
        """One step down: the inverse of :meth:`forward`, bit for bit in fixed point."""
        evaluate = evaluate or self.evaluate
        self.n -= 1
        for k, micro in reversed(list(enumerate(self.problem.micros(self.n)))):
            i = micro.slot
            j = 1 - micro.slot
            grid = self.problem.grid
            value = evaluate(micro, self.n, self.view(j))
            if self.members is not None:
                value = self.members.without(value)
            before = tuple(self.states) if self._at_once else None
            plan = self._plan(micro)
            carry = self.carries.pop() if plan.carries else self._none
            if self._binds:
                stats = self._undo_bound(micro, plan, value, carry)
            else:
                stats = self.undo(i, plan.c, grid.into(i, value), carry)
            if self.members is not None:
                self.states[i] = self.members.without(self.states[i])
            self._moved(i, stats, k, before, undo=True)

    def _moved(
        self, i: int, stats: Tensor, k: int, before: tuple[Tensor, ...] | None, undo: bool = False
    ) -> None:
        """Micro-step ``k`` has moved slot ``i``; ``before``: the states then, where they are looked at once
        and not held for long.
        """
        self._drop(i)
        if before is None:
            if self.ledger.later(Moment(self.n, k, undo=undo), stats) >= _LOOK_EVERY:
                self.look()
            return
        seen = self.ledger.look(stats)
        if seen.bad:
            raise overflow(self.problem, Moment(self.n, k, before, undo=undo), seen, self.args)

    def _drop(self, i: int) -> None:
        """What was evaluated of slot ``i`` as it was."""
        for key in [k for k in self._cache if k[1] == i]:
            del self._cache[key]

    def look(self) -> None:
        """Read the statistics that have come in. Raises StateOverflowError naming the step."""
        for moment, stats in self.ledger.read():
            if stats.bad:
                raise overflow(self.problem, moment, stats, self.args)

    def checksums(self) -> Tensor:
        """``(2,)`` int64: of the two states."""
        return torch.stack([ops.checksum(s) for s in self.states])

    def compare(self, expected: Tensor) -> None:
        """Raises ReconstructionError when the states are not those whose checksums these are (exact formats
        only).
        """
        if self.problem.grid.format.exact and not torch.equal(self.checksums(), expected):
            raise ReconstructionError(
                f"the states rebuilt at step {self.n} (t = {self.problem.time(self.n):.6g}) are not those of"
                " the forward pass; likely causes: the field is random or keeps hidden state, its parameters"
                " changed between forward and backward, or a kernel is not deterministic",
                self.n,
            )


def _served_twice(problem: Problem) -> set[tuple[int, int]]:
    """``(function, slot)`` where one value may serve two micro-steps: the slot does not move between them."""
    found: set[tuple[int, int]] = set()
    waiting: set[tuple[int, int]] = set()
    for n in range(min(problem.steps, 4)):
        for micro in problem.micros(n):
            key = micro.field, 1 - micro.slot
            if micro.field != IDENTITY and not micro.rk_sign:
                found |= {key} & waiting
                waiting.add(key)
            waiting = {k for k in waiting if k[1] != micro.slot}
    return found
