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
    MOST,
    Carries,
    Failures,
    Order,
    Programs,
    Watch,
    blocks,
    carry_bits,
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
        saved: float64 or int64 ``(len(saves), batch, dim)`` of each slot.
        watch: the :class:`Watch` that was given.
        failures: with ``keep_going``, which systems failed. Their slots, and their saves from there on, are
            those of the last micro-step that was right.
    """

    evaluations: int
    largest: float
    bad_step: int
    bad_system: int
    saved: tuple[Tensor, Tensor]
    watch: Watch | None = None
    failures: Failures | None = None


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
    order = Order.of(period, regular)
    check_run(steps, low, 1 if threads is None else threads, batch, dim, interval, watch, keep_going)
    bits = (
        carry_bits(programs, period, dim, steps, low, regular)
        if fixed and (undo or carries is not None)
        else 0
    )
    check_carries(carries, bits, batch, undo)
    saved = tuple(torch.empty((len(saves), batch, dim), dtype=slots[0].dtype) for _ in slots)
    failures = Failures(batch) if keep_going is True else keep_going or None
    if not batch:  # nothing to do, and arrays without an address
        return Ran(0, 0.0, -1, -1, saved, watch, failures)
    call = _Call(native, programs, order, slots, h, undo)
    call.clock(t0, interval)
    if frac_bits is not None:
        call.units(frac_bits)
    if tableau is not None:
        call.run.tableau(*_square(tableau))
    if fixed and carries is not None:
        call.keep(carries)
    call.run.threads = _forks.threads(threads)
    call.run.lanes = lanes
    call.run.isa = isa
    if watch is not None:
        watch.connect(call.run, fixed)
    if failures is not None:
        call.run.bad, call.run.bad_value = failures.step.data_ptr(), failures.value.data_ptr()
    with call.caught:
        evaluations, largest, bad = _all_blocks(
            call, blocks(position, steps, undo, saves), saved, steps, progress
        )
    if bad[0] >= 0:
        return Ran(evaluations, largest, *bad, saved, watch)
    if failures is not None:
        failures.fill(saved, slots, saves, undo)
    return Ran(evaluations, largest, -1, -1, saved, watch, failures)


def _all_blocks(call, stretches, saved, steps, progress) -> tuple[int, float, tuple[int, int]]:
    """``(evaluations, largest, (bad step, bad system))`` of all stretches, in chunks."""
    undo = call.undo
    saves = len(saved[0])
    evaluations = 0
    largest = 0.0
    done = 0
    row = 0
    chunk = 1
    for begin, count, every in stretches:
        taken = 0
        while taken < count:
            n = begin - taken if undo else begin + taken
            now = call.longest(n, min(chunk, count - taken))
            until = every - taken % every if every else 0
            rows = tuple(k[row].data_ptr() if every and row < saves else 0 for k in saved)
            start = time.perf_counter()
            result = call(n, now, every, until, rows)
            seconds = time.perf_counter() - start
            # A call does not know the values that the last one ended with. What it evaluates again for that
            # is taken off, so that the count does not depend on where chunks end.
            evaluations += result.evaluations - (call.shared(n) if done else 0)
            largest = max(largest, result.largest)
            if result.bad_step >= 0:
                return evaluations, largest, (result.bad_step, result.bad_system)
            row += (taken + now) // every - taken // every if every else 0
            taken, done = taken + now, done + now
            chunk = max(1, min(8 * chunk, int(now * CHUNK_SECONDS / max(seconds, 1e-9))))
            if progress is not None:
                progress(done, steps)
    return evaluations, largest, (-1, -1)


class _Call:
    """Calls into C++ for the chunks of one run. ``run`` holds what stays the same; ``__call__`` sets the
    rest.
    """

    def __init__(
        self,
        native: Native,
        programs: Programs,
        order: Order,
        slots: tuple[Tensor, Tensor],
        h: float,
        undo: bool,
    ):
        self.native = native
        self.programs = programs
        self.order = order
        self.slots = slots
        self.undo = undo
        self.carries: Carries | None = None
        self.known: dict[int, list] = {}
        # Built-in fields call nobody.
        self.catcher = _callbacks.Catcher(self._thread) if native.number == USER else None
        self.caught = self.catcher or contextlib.nullcontext()
        self.run = run = _C.OdeRun()
        run.batch, run.dim = slots[0].shape
        run.slots = slots[0].data_ptr(), slots[1].data_ptr()
        run.h = h
        run.undo = undo
        run.field(native.number, list(native.params))
        run.user = native.pointers
        run.user_data = native.user_data
        run.stop = ctypes.addressof(self.catcher.stop) if self.catcher else 0

    def clock(self, t0: float, interval: tuple[float, float]) -> None:
        self.run.t0 = t0
        self.run.lo, self.run.hi = interval

    def units(self, frac_bits: tuple[Tensor, Tensor]) -> None:
        """The slots are integers in these units."""
        self.alive = tuple(b.to(torch.int32).contiguous() for b in frac_bits)  # C++ has their addresses alone
        self.run.fixed = True
        self.run.each = self.alive[0].ndim == 2
        self.run.frac_bits = self.alive[0].data_ptr(), self.alive[1].data_ptr()

    def keep(self, carries: Carries) -> None:
        """What the rounding of |alpha| < 1 loses goes there, or comes from there."""
        self.carries = carries
        self.run.carry = carries.rows.data_ptr()
        self.run.carry_stride = carries.rows.stride(0)

    def longest(self, n: int, wanted: int) -> int:
        """Steps from ``n`` on (or back) that one list of programs serves, at most ``wanted``."""
        low, high = (n - wanted, n) if self.undo else (n, n + wanted)
        return self.order.stretch(low, high, self.undo)

    def _thread(self) -> int:
        """The number of this thread, where it works for this call; 0 where it does not."""
        stop, number = _C.ode_inside()
        return number if stop == self.run.stop else 0

    def time(self, n: int, tau: float) -> float:
        """As the compiled loop has it."""
        t = self.run.t0 + (n + tau) * self.run.h
        return self.run.lo if t < self.run.lo else self.run.hi if t > self.run.hi else t

    def shared(self, n: int) -> int:
        """Evaluations that the step from ``n`` on (or back) would have had from the step before it, had one
        call taken both.
        """
        numbers = (n, n - 1) if self.undo else (n - 1, n)
        known: dict[int, tuple[int, float]] = {}
        count = 0
        for step, number in enumerate(numbers):
            program = self._rows(number)
            for m in reversed(program) if self.undo else program:
                source = 1 - m.slot
                known.pop(m.slot, None)
                if m.function < 0:
                    continue
                value = (m.function, self.time(number, m.tau) if self.native.number == USER else 0.0)
                count += step == 1 and m.rk_sign == 0 and known.get(source) == value
                known.pop(source, None)
                if step == 0 and m.rk_sign == 0:
                    known[source] = value
        return count

    def __call__(self, n: int, steps: int, every: int, until: int, rows: tuple[int, int]) -> Any:
        """``steps`` steps from step ``n`` on, or the ``steps`` before it undone. ``rows``: where slots are
        saved.
        """
        run = self.run
        run.position, run.steps = n, steps
        run.program(*self._programs(n - steps if self.undo else n, steps))
        run.save, run.save_every, run.until_save = rows, every, until
        if self.carries is not None:
            run.carry_at = self.carries.at
        result = run()
        self._blame(result)
        if self.carries is not None:
            self.carries.at = result.carry_at
        return result

    def _blame(self, result: Any) -> None:
        """Raise what a callback raised, or that it left something out."""
        if self.catcher is None or not (result.fault or self.catcher.exception is not None):
            return
        step, system, t = result.bad_step, result.bad_system, result.fault_t
        batch, dim = self.slots[0].shape
        where = (
            "a step of this run"
            if step < 0
            else f"step {step}, t = {t:.6g}" + (f", system {system} of {batch}" if batch > 1 else "")
        )
        where += ", on the way back" if self.undo else ""
        facts = (step, t if step >= 0 else None, system)
        self.catcher.raise_caught(where, *facts)
        raise _callbacks.unwritten(where, result.fault_component, dim, *facts)

    def _programs(self, low: int, steps: int) -> tuple[list, list[int]]:
        """Of ``steps`` steps from ``low`` on, one after the other, and how many micro-steps each has."""
        rows = [[] if n is None else self._rows(n) for n in self.order.listed(low, steps)]
        return [row for program in rows for row in program], [len(program) for program in rows]

    def _rows(self, n: int) -> list:
        key = self.order.key(n)
        if key not in self.known:
            if len(self.known) > MOST:
                self.known.clear()
            self.known[key] = [self._row(m) for m in self.programs(key)]
        return self.known[key]

    def _row(self, m: Micro) -> Any:
        return _C.OdeMicro(
            slot=m.slot,
            function=IDENTITY if m.field == IDENTITY else self.native.functions[m.field],
            rk_sign=m.rk_sign,
            alpha=float(m.alpha),
            beta=float(m.beta),
            gamma=float(m.gamma(self.run.h)),
            tau=float(m.tau),
        )


def _square(tableau: Tableau) -> tuple[list[float], list[float], list[float]]:
    """a, b and c as the loop takes them: a row by row, with zeros on and above the diagonal."""
    stages = len(tableau.b)
    a = [float(row[j]) if j < len(row) else 0.0 for row in tableau.a for j in range(stages)]
    return a, [float(x) for x in tableau.b], [float(x) for x in tableau.c]


MATH = ("sin", "cos", "exp")


def math_of(function: str, x: Tensor, isa: int = -1) -> Tensor:
    """sin, cos or exp as the compiled fields compute it: the same bits on every machine."""
    if function not in MATH:
        raise ConfigError(f"no function {function!r}, expected one of {MATH}")
    x = x.detach().to(torch.float64).contiguous()
    out = torch.empty_like(x)
    _C.ode_math(MATH.index(function), x.data_ptr(), out.data_ptr(), x.numel(), isa)
    return out
