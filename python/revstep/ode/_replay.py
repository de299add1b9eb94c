"""The loop on tensors with the field's operators replayed: no Python of the field, no autograd, no look at
the statistics of each micro-step.

Every run asks the field itself once for each kind of Phi that it needs, and goes on with a replay that gave
the same bits there. Both directions replay one capture, the values of which are the same operators.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._recurrence.walk import below_autograd
from ..errors import UnsupportedError
from ._capture import Captured, NotCapturedError, capture
from ._evaluations import Evaluations, LeafActs
from ._gradient import DEVICE_TYPES, Sweep
from ._loop import Walker
from ._problem import Problem, scalar_on, staged
from ._signature import Opaque, signature
from ._starts import same_bits
from .methods._base import Micro

#: Micro-steps whose statistics are looked at together on the CPU.
GROUP = 64
#: Times of which what the field makes of them is kept: those of a step, and more of none.
_TOLD = 16
#: Captures of one function that are kept for later runs.
_PER_FUNCTION = 16

#: Function of the caller's -> its captures by what they depend on. What dies takes its captures with it.
_STORE: weakref.WeakKeyDictionary[Any, OrderedDict[Hashable, _Record]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class _Record:
    """One capture.

    Attributes:
        captured: the operators.
        leaves: ids of the tensors differentiated after the arguments, in order.
    """

    captured: Captured
    leaves: tuple[int, ...] = ()


def refusal(problem: Problem, device: torch.device, scalars: bool, dropping: bool) -> str | None:
    """Why a run cannot replay, as a clause; None where it may try.

    Args:
        scalars: a gradient of h or t0 is asked for. dropping: members that fail are dropped.
    """
    if scalars:
        return "a gradient of h or t0 is asked for, which flows through the times"
    if dropping:
        return "on_failure='drop' looks at each micro-step"
    if any(getattr(f, "on_arrays", False) for f in problem.functions):
        return "y0 is a NumPy array, and the field a function of arrays: give a tensor"
    if any(torch.is_autocast_enabled(kind) for kind in DEVICE_TYPES):
        return "autocast is on"
    if torch.is_inference_mode_enabled():
        return "inference mode is on: torch.no_grad() is replayed"
    if device.type not in ("cpu", "cuda"):
        return f"the state is on {device}"
    return None


class Captures:
    """What was captured for one run; its :meth:`forward` is how the run asks.

    Raises:
        NotCapturedError: from :meth:`forward`, at the first evaluation of a kind.
    """

    def __init__(self, evaluations: Evaluations):
        self.evaluations = evaluations
        self.problem = evaluations.problem
        self.records: dict[tuple[int, int], _Record] = {}
        self._replays = Replays(self, evaluations.args)

    def forward(self, walker: Walker, micro: Micro, n: int, x: Tensor) -> Tensor:
        """Phi on the way up."""
        key = micro.field, micro.rk_sign
        if key in self.records:
            return self._replays.value(walker, micro, n, x)
        value = self.evaluations.first(walker, micro, n, x)
        for anew in (False, True):
            record, found = self._found(walker, micro, n, x, anew)
            self.records[key] = record
            if same_bits(value, self._replays.value(walker, micro, n, x)):
                return value
            self._replays.forget(key)
            if not found:
                break
        self.evaluations.forward(walker, micro, n, x)  # which raises where the field itself is random
        raise NotCapturedError("its operators, replayed, give other values than the field")

    def again(self, walker: Walker, micro: Micro, n: int, x: Tensor) -> Tensor:
        """Phi where the run has been."""
        if (micro.field, micro.rk_sign) in self.records:
            return self._replays.value(walker, micro, n, x)
        return self.evaluations.again(walker, micro, n, x)

    def _found(self, walker: Walker, micro: Micro, n: int, x: Tensor, anew: bool) -> tuple[_Record, bool]:
        """A record, and whether it is one of an earlier run; ``anew``: it may not be."""
        leaves = self.evaluations.leaves.alive() if self.evaluations.graph else None
        args, spec, at = _tensors(self.evaluations.args)
        tensors = [args[i] for i in at]
        f = self.problem.functions[micro.field]
        rest = [a for i, a in enumerate(args) if i not in at]
        store, key = _place(getattr(f, "f", f), f, rest)
        if store is not None:
            kinds = [(t.shape, t.stride(), t.dtype, t.device, t.requires_grad) for t in (x, *tensors)]
            numbers = (self.problem.method.tableau, self.problem.h) if micro.rk_sign else None
            ids = None if leaves is None else tuple(map(id, leaves))
            modes = torch.is_grad_enabled(), torch.get_default_dtype(), _default_device()
            key = (key, repr(spec), tuple(kinds), micro.rk_sign, numbers, ids, modes)
            if key in store and not anew:
                store.move_to_end(key)
                return store[key], True
        times = [scalar_on(x.device, t) for t in self.problem.stage_times(n, micro)]
        captured = capture(self._phi(micro, args, spec, at), times, x.detach(), tensors, leaves)
        record = _Record(captured, tuple(map(id, leaves or ())))
        if store is not None:
            store[key] = record
            while len(store) > _PER_FUNCTION:
                store.popitem(last=False)
        return record, False

    def _phi(self, micro: Micro, args: Sequence[Any], spec: Any, at: Sequence[int]) -> Callable:
        f, tableau = self.problem.functions[micro.field], self.problem.method.tableau
        h = self.problem.h if micro.rk_sign >= 0 else -self.problem.h

        def phi(times: Sequence[Tensor], x: Tensor, tensors: Sequence[Tensor]) -> Tensor:
            leaves = list(args)
            for i, t in zip(at, tensors):
                leaves[i] = t
            own = tree_unflatten(leaves, spec)
            return staged(tableau, f, times, h, x, own) if micro.rk_sign else f(times[0], x, *own)

        return phi


def _tensors(args: Sequence[Any]) -> tuple[list[Any], Any, list[int]]:
    """The leaves of the arguments, their tree, and which of them are tensors."""
    leaves, spec = tree_flatten(tuple(args))
    return leaves, spec, [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]


def _default_device() -> torch.device:
    """Where a tensor is made that is told nothing. torch.get_default_device of torch 2.9 raises once one was
    set and taken back.
    """
    return torch.empty(()).device


def _place(f: Callable, wrapped: Any, rest: Sequence[Any]) -> tuple[OrderedDict | None, Hashable]:
    """Where captures of ``f`` are kept, and what they depend on; None where that cannot be seen."""
    owner = getattr(f, "__self__", f)
    try:
        about = signature(f), signature(lambda: rest), (wrapped.without_time, wrapped.form.complex)
        return _STORE.setdefault(owner, OrderedDict()), about
    except (Opaque, TypeError, AttributeError):  # a TypeError: no weak reference to it
        return None, None


class Replays:
    """The captures of a run for one walk, with the arguments as they are there."""

    def __init__(self, captures: Captures, args: Sequence[Any]):
        self._captures = captures
        leaves, _, at = _tensors(args)
        self._arguments = [leaves[i] for i in at]
        self._ready: dict[tuple[int, int], _Ready] = {}
        self._told: dict[tuple[Any, float], tuple[Tensor, ...]] = {}

    def forget(self, key: tuple[int, int]) -> None:
        """What was made of a capture that is exchanged."""
        self._ready.pop(key, None)
        self._told.clear()

    def value(self, walker: Walker, micro: Micro, n: int, x: Tensor) -> Tensor:
        with below_autograd():
            ready = self._made(micro)
            return ready.value(*self._times(ready, walker, micro, n), x)

    def joint(self, walker: Walker, micro: Micro, n: int, x: Tensor, cotangent: Tensor) -> tuple:
        with below_autograd():
            ready = self._made(micro)
            return ready.joint(*self._times(ready, walker, micro, n), x, cotangent)

    def _made(self, micro: Micro) -> _Ready:
        key = micro.field, micro.rk_sign
        found = self._ready.get(key)
        if found is None:
            captured = self._captures.records[key].captured
            kept = captured.keep(self._arguments)
            # One object for equal clocks, by which their results are found.
            clocks = {clock: functools.partial(clock, *kept) for clock in captured.clocks}
            found = self._ready[key] = _Ready(
                functools.partial(captured.value, *kept),
                captured.joint and functools.partial(captured.joint, *kept),
                tuple(clocks[clock] for clock in captured.clocks),
            )
        return found

    def _times(self, ready: _Ready, walker: Walker, micro: Micro, n: int) -> Sequence[Tensor]:
        """What depends on the times alone."""
        found: list[Tensor] = []
        for clock, t in zip(ready.clocks, walker.problem.stage_times(n, micro)):
            told = self._told.get((clock, t))
            if told is None:
                if len(self._told) >= _TOLD:
                    del self._told[next(iter(self._told))]
                told = self._told[clock, t] = clock(scalar_on(walker.states[0].device, t))
            found += told
        return found


@dataclass(frozen=True)
class _Ready:
    """A capture with what its walk keeps."""

    value: Callable[..., Tensor]
    joint: Callable[..., tuple] | None
    clocks: tuple[Callable[..., tuple[Tensor, ...]], ...]


@dataclass(frozen=True)
class _Begin:
    """Where a group of micro-steps begins; ``undo``: it goes down."""

    n: int
    states: list[Tensor]
    carries: list[Tensor]
    undo: bool


class Replay(Walker):
    """A walk on the CPU that looks at the statistics of a group of micro-steps together.

    Where one of them shows a value out of range, the group is walked once more with the field itself,
    micro-step by micro-step, which says what happened and where.
    """

    def __init__(self, *args: Any, repeat: Callable, **options: Any):
        super().__init__(*args, **options)
        self._repeat = repeat
        self._rows = torch.empty((GROUP, 4), dtype=torch.int64)
        self._filled = 0
        self._begin: _Begin | None = None
        self._within = False

    def forward(self, evaluate: Any = None) -> None:
        with self._step(self.n, False):
            super().forward(evaluate)

    def back(self, evaluate: Any = None) -> None:
        with self._step(self.n - 1, True):
            super().back(evaluate)

    @contextlib.contextmanager
    def _step(self, n: int, undo: bool) -> Iterator[None]:
        """Around step ``n``: it has rows for all its micro-steps, and a place to be walked from once more."""
        wanted = len(self.problem.micros(n))
        if self._filled + wanted > len(self._rows):
            self.look()
            if wanted > len(self._rows):
                self._rows = torch.empty((wanted, 4), dtype=torch.int64)
        if self._begin is None:
            self._begin = _Begin(self.n, list(self.states), self.carries[-len(self._rows) :], undo)
        self._within = True
        try:
            yield
        except (NotCapturedError, LeafActs):
            raise
        except Exception:
            self.look()  # of values out of range an operator may make anything
            raise
        finally:
            self._within = False

    def _row(self) -> tuple[Any, int]:
        self._filled += 1
        return None, self._rows.data_ptr() + 32 * (self._filled - 1)

    def _moved(self, i: int, stats: Any, k: int, before: Any, undo: bool = False) -> None:
        if self._cache:
            self._drop(i)

    def look(self) -> None:
        rows, begin = self._rows[: self._filled], self._begin
        self._filled, self._begin = 0, None
        if not len(rows):
            return
        if bool(rows[:, 1].any()):
            self._explain(begin)
        self.ledger.largest = max(self.ledger.largest, float(rows[:, 2].view(torch.float64).max()))

    def _explain(self, begin: _Begin) -> None:
        """Raises what the field itself raises on the way from there."""
        walker = Walker(self.problem, begin.states, self.args, begin.n, begin.carries, ask=self._repeat)
        if begin.undo:
            while walker.n > self.n:
                walker.back()
        else:
            while walker.n < self.n + self._within:
                walker.forward()
        raise UnsupportedError(
            f"the field's operators, replayed, left the range of the state between steps {begin.n} and"
            f" {self.n}, where the field itself does not: it changed during the run. Take loop='python'"
        )


class ReplaySweep(Sweep):
    """The backward pass that replays values and gradients."""

    def __init__(self, job: Any, *rest: Any):
        super().__init__(job, *rest)
        captures: Captures = job.captures
        self._replays = Replays(captures, self.walker.args)
        places = {id(t): k for k, t in enumerate(self.inputs)}
        given = range(len(self.args))
        self._places = {
            key: [*given, *(places[i] for i in record.leaves)] for key, record in captures.records.items()
        }
        self._owned = [False] * len(self.inputs)

    def _walker(self, *args: Any) -> Walker:
        return walk(self.job.captures, *args, ask=self.job.captures.again)

    def _vjp(self, micro: Micro, n: int, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor | None]:
        places = self._places.get((micro.field, micro.rk_sign))
        # Operators were captured for dense gradients, and a view of another layout may not exist.
        if places is None or not cotangent.is_contiguous():
            return super()._vjp(micro, n, x, cotangent)
        self.walker.count(micro)
        value, g_x, *rest = self._replays.joint(self.walker, micro, n, x, cotangent)
        sums, found = [], []
        for k, g in zip(places, rest):
            if g is None:
                continue
            if self._owned[k]:
                sums.append(self.g_tensors[k])
                found.append(g)
            else:  # the first, or a sum that autograd's own gradient is in
                held = self.g_tensors[k]
                self.g_tensors[k] = g.clone() if held is None else held + g
                self._owned[k] = True
        if sums:
            torch._foreach_add_(sums, found)
        return value, g_x


def walk(captures: Captures, problem: Problem, slots: Any, *args: Any, **options: Any) -> Walker:
    """A walker for a run that replays."""
    if slots[0].device.type == "cpu":
        return Replay(problem, slots, *args, repeat=captures.evaluations.again, **options)
    return Walker(problem, slots, *args, **options)
