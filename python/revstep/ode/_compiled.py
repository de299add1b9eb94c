"""The loop in C++: checks what a type cannot say, runs in chunks so that Ctrl-C and progress work."""

from __future__ import annotations

import contextlib
import ctypes
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _C  # after torch, to whose OpenMP runtime it binds
from ..errors import ConfigError
from ..ops import _forks
from . import _callbacks
from ._functions import USER, CompiledField, Native
from ._records import (
    LIMIT,
    MAX_FRAC_BITS,
    Carries,
    Failures,
    Watch,
    blocks,
    check_carries,
    check_run,
    check_slots,
)
from .methods._base import IDENTITY, Micro
from .tableaus import Tableau

__all__ = [
    "LIMIT",
    "MAX_FRAC_BITS",
    "Carries",
    "CompiledField",
    "Failures",
    "Ran",
    "Watch",
    "carry_bits",
    "layout",
    "math_of",
    "run",
]

#: A call into C++ takes about this long; signals are seen and progress is told between calls.
CHUNK_SECONDS = 0.05
#: Programs that a call may carry when every step has its own.
_PROGRAMS = 1024

Programs = Callable[[int], Sequence[Micro]]


@dataclass(frozen=True)
class Ran:
    """What a run left behind.

    Attributes:
        evaluations: of the field, for one system; a Runge-Kutta increment counts its stages.
        largest: largest magnitude in a slot after a step, or of the value that did not fit: |X| of integer
            states, |x| of floats.
        bad_step: the first step in which a value left the format, or was NaN or infinite; -1: none. Integer
            slots are then those of the last micro-step that was right: none is wrapped.
        bad_system: which system of the batch; -1: none.
        kept: float64 or int64 ``(len(saves), batch, dim)`` of each slot.
        watch: the :class:`Watch` that was given.
        failures: with ``keep_going``, which systems failed. Their slots, and their saves from there on, are
            those of the last micro-step that was right.
    """

    evaluations: int
    largest: float
    bad_step: int
    bad_system: int
    kept: tuple[Tensor, Tensor]
    watch: Watch | None = None
    failures: Failures | None = None


@dataclass(frozen=True)
class _Order:
    """Which program a step has: steps ``first <= n < last`` follow a period (None: no step does), all others
    have their own.
    """

    period: int | None
    first: int = 1
    last: float = math.inf

    @staticmethod
    def of(period: int | None, regular: tuple[int, int | None]) -> _Order:
        first, last = regular
        if period is None:
            return _Order(None, 0, 0)
        if period < 1 or first < 0 or (last is not None and last < first):
            got = f"period is {period} from step {first} to {last}"
            raise ConfigError(f"{got}: expected a positive period, and steps in rising order")
        return _Order(period, first, math.inf if last is None else last)

    def stretch(self, low: int, high: int, undo: bool) -> int:
        """How many of the steps ``low <= n < high`` one call can take, from the first on, or from the last
        back.
        """
        n = high - 1 if undo else low
        if self.period is not None and self.first <= n < self.last:
            return high - max(low, self.first) if undo else int(min(high, self.last)) - low
        if self.period is None:
            end = low if undo else high
        elif undo:
            end = max(low, int(self.last)) if n >= self.last else low
        else:
            end = min(high, self.first) if n < self.first else high
        return min(abs(end - (high if undo else low)), _PROGRAMS)

    def follows(self, n: int) -> bool:
        return self.period is not None and self.first <= n < self.last

    def key(self, n: int) -> int:
        """The first step that has the program of step ``n``."""
        return self.first + (n - self.first) % self.period if self.follows(n) else n

    def listed(self, low: int, steps: int) -> list[int | None]:
        """Steps whose programs serve ``steps`` steps from ``low`` on, in the order in which C++ counts them:
        step n runs number n % len(list). None: no step of the run has it."""
        if not self.follows(low):
            period, low = max(1, steps), low
        else:
            period, low = self.period, self.first
        found: list[int | None] = [None] * period
        for n in range(low, low + period):
            found[n % period] = n if not self.follows(low) or self.follows(n) else None
        return found


def carry_bits(
    programs: Programs,
    period: int | None,
    dim: int,
    steps: int,
    position: int = 0,
    regular: tuple[int, int | None] = (1, None),
) -> int:
    """Bits of a :class:`Carries` row that ``steps`` steps from ``position`` on fill; ``regular`` as
    :func:`run` has it.
    """
    order, end = _Order.of(period, regular), position + steps
    if order.period is None:
        return sum(_bits(programs(n), dim) for n in range(position, end))
    low, high = max(position, order.first), int(min(end, order.last))
    own = [*range(position, min(end, order.first)), *range(max(position, int(min(order.last, end))), end)]
    total = sum(_bits(programs(n), dim) for n in own)
    if high > low:
        whole, rest = divmod(high - low, order.period)
        each = [_bits(programs(low + k), dim) for k in range(min(order.period, high - low))]
        total += whole * sum(each) + sum(each[:rest])
    return total


def _bits(program: Sequence[Micro], dim: int) -> int:
    return sum(m.carry_bits for m in program) * dim


def layout(field: Any, shape: Sequence[int]) -> tuple[int, int]:
    """``(batch, dim)`` of a state of this shape: how many systems, and components of one.

    A field says how many trailing axes are one system (``event_dims``), and ``check_event(shape)`` raises
    where theirs do not fit.

    Raises:
        ConfigError: the shape does not hold whole systems of the field.
    """
    shape = tuple(int(n) for n in shape)
    if field.event_dims > len(shape):
        raise ConfigError(
            f"the state has shape {shape}, but a system of {type(field).__name__} takes the last"
            f" {field.event_dims} axes: add them"
        )
    event = shape[len(shape) - field.event_dims :]
    field.check_event(event)
    return math.prod(shape[: len(shape) - field.event_dims]), math.prod(event)


def run(
    native: Native,
    programs: Programs,
    slots: tuple[Tensor, Tensor],
    *,
    h: float,
    steps: int,
    period: int | None = 1,
    t0: float = 0.0,
    position: int = 0,
    undo: bool = False,
    frac_bits: tuple[Tensor, Tensor] | None = None,
    tableau: Tableau | None = None,
    saves: Sequence[int] = (),
    carries: Carries | None = None,
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    watch: Watch | None = None,
    regular: tuple[int, int | None] = (1, None),
    interval: tuple[float, float] = (-math.inf, math.inf),
    keep_going: bool | Failures = False,
    lanes: int = 0,
    isa: int = -1,
) -> Ran:
    """Take ``steps`` steps from step ``position`` on, or undo the ``steps`` before it, in place.

    Args:
        native: the field, from its ``compiled()``.
        programs: micro-steps of step n; the regular ones repeat with ``period`` (None: never).
        slots: CPU tensors ``(batch, dim)``, contiguous: int64 (fixed point) or float64.
        frac_bits: of integer slots: int32 ``(dim,)``, or ``(batch, dim)`` where systems differ, both alike;
            the value of X is X 2**-frac_bits.
        tableau: of programs with ``rk_sign``.
        saves: step numbers within the run, in the order in which it comes by; the slots at them are kept. Not
            the start.
        carries: needed to undo |alpha| < 1; without it the bits are lost.
        watch: is filled by a run forwards.
        regular: ``(first, last)``: steps first <= n < last follow the period, the others have programs of
            their own; None: to the end.
        interval: the functions of a CompiledField are asked at times in it alone: those outside are moved to
            its ends.
        keep_going: True: a system that fails does not end the run; the others go on, with the same bits. Or
            the :class:`Failures` of an earlier call: the systems that failed there are left as they are.
        lanes, isa: for tests: systems side by side (0 chooses), instruction set level (-1 the best).

    Returns:
        :class:`Ran`. After a value that did not fit the run ends early and ``bad_step`` says so: raising is
        the caller's.

    Raises:
        ConfigError: tensors or numbers that do not fit together. KeyboardInterrupt: between two chunks; the
            slots are then at a whole step. Or out of a callback of a CompiledField, and then each system is
            where it was asked last.
        CallbackError: a callback raised something else, or left part of its output unwritten.
    """
    batch, dim, fixed = check_slots(slots, frac_bits)
    h, t0 = float(h), float(t0)
    low = position - steps if undo else position
    order = _Order.of(period, regular)
    check_run(steps, low, 1 if threads is None else threads, batch, dim, interval, watch, keep_going)
    bits = (
        carry_bits(programs, period, dim, steps, low, regular)
        if fixed and (undo or carries is not None)
        else 0
    )
    check_carries(carries, bits, batch, undo)
    kept = tuple(torch.empty((len(saves), batch, dim), dtype=slots[0].dtype) for _ in slots)
    failures = Failures(batch) if keep_going is True else keep_going or None
    if not batch:  # nothing to do, and arrays without an address
        return Ran(0, 0.0, -1, -1, kept, watch, failures)
    call = _Call(
        native,
        programs,
        order,
        slots,
        frac_bits,
        tableau,
        carries if fixed else None,
        (t0, h),
        undo,
        interval,
    )
    call.options, call.records = (_forks.threads(threads), lanes, isa), _addresses(watch, failures, fixed)
    with call.caught:
        evaluations, largest, bad = _all_blocks(
            call, blocks(position, steps, undo, saves), kept, steps, progress
        )
    if bad[0] >= 0:
        return Ran(evaluations, largest, *bad, kept, watch)
    if failures is not None:
        failures.fill(kept, slots, saves, undo)
    return Ran(evaluations, largest, -1, -1, kept, watch, failures)


def _all_blocks(call, stretches, kept, steps, progress) -> tuple[int, float, tuple[int, int]]:
    """``(evaluations, largest, (bad step, bad system))`` of all stretches, in chunks."""
    undo, saves = call.undo, len(kept[0])
    evaluations, largest, done, row, chunk = 0, 0.0, 0, 0, 1
    for begin, count, every in stretches:
        taken = 0
        while taken < count:
            n = begin - taken if undo else begin + taken
            now = call.longest(n, min(chunk, count - taken))
            until = every - taken % every if every else 0
            rows = tuple(k[row].data_ptr() if every and row < saves else 0 for k in kept)
            start = time.perf_counter()
            more, bad_step, bad_system, high = call(n, now, every, until, rows)
            seconds = time.perf_counter() - start
            evaluations, largest = evaluations + more - (call.shared(n) if done else 0), max(largest, high)
            if bad_step >= 0:
                return evaluations, largest, (bad_step, bad_system)
            row += (taken + now) // every - taken // every if every else 0
            taken, done = taken + now, done + now
            chunk = max(1, min(8 * chunk, int(now * CHUNK_SECONDS / max(seconds, 1e-9))))
            if progress is not None:
                progress(done, steps)
    return evaluations, largest, (-1, -1)


def _addresses(watch: Watch | None, failures: Failures | None, fixed: bool) -> tuple[int, ...]:
    bad = (failures.step.data_ptr(), failures.value.data_ptr()) if failures is not None else (0, 0)
    return (*(watch.addresses(fixed) if watch is not None else (0,) * 6), *bad)


class _Call:
    """The arguments of one call into C++ that stay the same over a run."""

    def __init__(self, native, programs, order, slots, frac_bits, tableau, carries, clock, undo, interval):
        self.native, self.programs, self.order, self.slots, self.carries = (
            native,
            programs,
            order,
            slots,
            carries,
        )
        self.undo, self.fixed, self.clock, self.interval = undo, frac_bits is not None, clock, interval
        self.state = (*(s.data_ptr() for s in slots), slots[0].shape[0], slots[0].shape[1], self.fixed)
        self.alive = tuple(b.to(torch.int32).contiguous() for b in frac_bits) if frac_bits is not None else ()
        each = self.fixed and self.alive[0].ndim == 2
        self.units = (*(b.data_ptr() for b in self.alive), each) if self.fixed else (0, 0, False)
        self.field = (native.number, list(native.params), native.pointers, native.user_data)
        self.tableau = _square(tableau)
        self.options: tuple = ()
        self.records: tuple = ()
        self.known: dict[int, list] = {}
        # Built-in fields call nobody.
        self.catcher = _callbacks.Catcher(self._thread) if native.number == USER else None
        self.caught = self.catcher or contextlib.nullcontext()
        self.stop = ctypes.addressof(self.catcher.stop) if self.catcher else 0

    def longest(self, n: int, wanted: int) -> int:
        """Steps from ``n`` on (or back) that one list of programs serves, at most ``wanted``."""
        low, high = (n - wanted, n) if self.undo else (n, n + wanted)
        return self.order.stretch(low, high, self.undo)

    def _thread(self) -> int:
        """The number of this thread, where it works for this call; 0 where it does not."""
        stop, number = _C.ode_inside()
        return number if stop == self.stop else 0

    def time(self, n: int, tau: float) -> float:
        """As the compiled loop has it."""
        (t0, h), (low, high) = self.clock, self.interval
        t = t0 + (n + tau) * h
        return low if t < low else high if t > high else t

    def shared(self, n: int) -> int:
        """Evaluations that the step from ``n`` on (or back) would have had from the step before it, had one
        call taken both.
        """
        numbers = (n, n - 1) if self.undo else (n - 1, n)
        kept: dict[int, tuple[int, float]] = {}
        count = 0
        for step, number in enumerate(numbers):
            program = self._rows(number)
            for slot, function, rk_sign, *_, tau in reversed(program) if self.undo else program:
                source = 1 - slot
                kept.pop(slot, None)
                if function < 0:
                    continue
                value = (function, self.time(number, tau) if self.native.number == USER else 0.0)
                count += step == 1 and rk_sign == 0 and kept.get(source) == value
                kept.pop(source, None)
                if step == 0 and rk_sign == 0:
                    kept[source] = value
        return count

    def __call__(
        self, n: int, steps: int, every: int, until: int, rows: tuple[int, int]
    ) -> tuple[int, int, int, float]:
        low = n - steps if self.undo else n
        micros, counts = self._programs(low, steps)
        carry = (
            (self.carries.rows.data_ptr(), self.carries.rows.stride(0), self.carries.at)
            if self.carries is not None
            else (0, 0, 0)
        )
        evaluations, bad_step, bad_system, largest, at, *fault = _C.ode_run(
            *self.state,
            *self.units,
            micros,
            counts,
            *self.clock,
            n,
            steps,
            self.undo,
            *self.field,
            *self.tableau,
            *rows,
            every,
            until,
            *carry,
            *self.options,
            (*self.interval, self.stop),
            self.records,
        )
        self._blame(bad_step, bad_system, *fault)
        if self.carries is not None:
            self.carries.at = at
        return evaluations, bad_step, bad_system, largest

    def _blame(self, step: int, system: int, fault: int, component: int, t: float) -> None:
        """Raise what a callback raised, or that it left something out."""
        if self.catcher is None or not (fault or self.catcher.exception is not None):
            return
        batch, dim = self.slots[0].shape
        where = (
            "a step of this run"
            if step < 0
            else f"step {step}, t = {t:.6g}" + (f", system {system} of {batch}" if batch > 1 else "")
        )
        where += ", on the way back" if self.undo else ""
        facts = (step, t if step >= 0 else None, system)
        self.catcher.raise_caught(where, *facts)
        raise _callbacks.unwritten(where, component, dim, *facts)

    def _programs(self, low: int, steps: int) -> tuple[list, list[int]]:
        """Of ``steps`` steps from ``low`` on, one after the other, and how many micro-steps each has."""
        rows = [[] if n is None else self._rows(n) for n in self.order.listed(low, steps)]
        return [row for program in rows for row in program], [len(program) for program in rows]

    def _rows(self, n: int) -> list:
        key = self.order.key(n)
        if key not in self.known:
            if len(self.known) > _PROGRAMS:
                self.known.clear()
            self.known[key] = [self._row(m) for m in self.programs(key)]
        return self.known[key]

    def _row(self, m: Micro) -> tuple:
        function = IDENTITY if m.field == IDENTITY else self.native.functions[m.field]
        return (
            m.slot,
            function,
            m.rk_sign,
            float(m.alpha),
            float(m.beta),
            float(m.gamma(self.clock[1])),
            float(m.tau),
        )


def _square(tableau: Tableau | None) -> tuple[list[float], list[float], list[float]]:
    if tableau is None:
        return [], [], []
    stages = len(tableau.b)
    a = [[float(row[j]) if j < len(row) else 0.0 for j in range(stages)] for row in tableau.a]
    return [x for row in a for x in row], [float(x) for x in tableau.b], [float(x) for x in tableau.c]


MATH = ("sin", "cos", "exp")


def math_of(function: str, x: Tensor, isa: int = -1) -> Tensor:
    """sin, cos or exp as the compiled fields compute it: the same bits on every machine."""
    if function not in MATH:
        raise ConfigError(f"no function {function!r}, expected one of {MATH}")
    x = x.detach().to(torch.float64).contiguous()
    out = torch.empty_like(x)
    _C.ode_math(MATH.index(function), x.data_ptr(), out.data_ptr(), x.numel(), isa)
    return out
