"""The loop in C++: checks what a type cannot say, runs in chunks so that Ctrl-C and progress work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import _C
from ..errors import ConfigError
from .methods.base import IDENTITY, Micro
from .native import USER, Native
from .pointers import CompiledField
from .tableaus import Tableau

__all__ = ["Carries", "CompiledField", "Ran", "carry_bits", "layout", "math_of", "run"]

#: A call into C++ takes about this long; signals are seen and progress is told between calls.
CHUNK_SECONDS = 0.05
#: Largest magnitude of an integer state.
LIMIT = 2**62 - 1
#: Units are 2**-256 to 2**256.
MAX_FRAC_BITS = 256
#: Programs that a call may carry when every step has its own.
_PROGRAMS = 1024

Programs = Callable[[int], Sequence[Micro]]


@dataclass(frozen=True)
class Ran:
    """What a run left behind.

    Attributes:
        evaluations: of the field, for one system; a Runge-Kutta increment counts its stages.
        largest: largest magnitude in a slot after a step, or of the value that did not fit: |X| of integer states, |x| of floats.
        bad_step: the first step in which a value left the format, or was NaN or infinite; -1: none. Integer slots are then
            those of the last micro-step that was right: none is wrapped.
        bad_system: which system of the batch; -1: none.
        kept: float64 or int64 ``(len(saves), batch, dim)`` of each slot.
    """

    evaluations: int
    largest: float
    bad_step: int
    bad_system: int
    kept: tuple[Tensor, Tensor]


class Carries:
    """The bits that |alpha| < 1 costs: a row a system, written forwards and read on the way back.

    Args:
        bits: of each row: :func:`carry_bits` of the steps to come.
    """

    def __init__(self, batch: int, bits: int):
        self.rows = torch.zeros((batch, (bits + 7) // 8), dtype=torch.uint8)
        self.bits, self.at = bits, 0

    @property
    def nbytes(self) -> int:
        return self.rows.numel()


def carry_bits(programs: Programs, period: int | None, dim: int, steps: int, position: int = 0) -> int:
    """Bits of a :class:`Carries` row that ``steps`` steps from ``position`` on fill."""
    if period is None:
        return sum(_bits(programs(n), dim) for n in range(position, position + steps))
    total = _bits(programs(0), dim) if position == 0 and steps else 0
    first, count = max(position, 1), steps - (position == 0 and steps > 0)
    whole, rest = divmod(count, period)
    each = [_bits(programs(first + k), dim) for k in range(min(period, count))]
    return total + whole * sum(each) + sum(each[:rest])


def _bits(program: Sequence[Micro], dim: int) -> int:
    return sum(m.carry_bits for m in program) * dim


def layout(field: Any, shape: Sequence[int]) -> tuple[int, int]:
    """``(batch, dim)`` of a state of this shape: how many systems, and components of one.

    A field says how many trailing axes are one system (``event_dims``), and ``check_event(shape)`` raises where theirs do not fit.

    Raises:
        ConfigError: the shape does not hold whole systems of the field.
    """
    shape = tuple(int(n) for n in shape)
    if field.event_dims > len(shape):
        raise ConfigError(f"the state has shape {shape}, but a system of {type(field).__name__} takes the last {field.event_dims} axes: add them")
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
    lanes: int = 0,
    isa: int = -1,
) -> Ran:
    """Take ``steps`` steps from step ``position`` on, or undo the ``steps`` before it, in place.

    Args:
        native: the field, from its ``compiled()``.
        programs: micro-steps of step n; from step 1 on they repeat with ``period`` (None: never).
        slots: CPU tensors ``(batch, dim)``, contiguous: int64 (fixed point) or float64.
        frac_bits: of integer slots: int32 ``(dim,)`` each, the value of X is X 2**-frac_bits.
        tableau: of programs with ``rk_sign``.
        saves: step numbers within the run, in the order in which it comes by; the slots at them are kept. Not the start.
        carries: needed to undo |alpha| < 1; without it the bits are lost.
        lanes, isa: for tests: systems side by side (0 chooses), instruction set level (-1 the best).

    Returns:
        :class:`Ran`. After a value that did not fit the run ends early and ``bad_step`` says so: raising is the caller's.

    Raises:
        ConfigError: tensors or numbers that do not fit together. KeyboardInterrupt: between two chunks; the slots are then at a whole step.
    """
    batch, dim, fixed = _check_slots(slots, frac_bits)
    h, t0, threads = float(h), float(t0), torch.get_num_threads() if threads is None else threads
    low = position - steps if undo else position
    _check_run(steps, low, threads)
    bits = carry_bits(programs, period, dim, steps, low) if fixed and (undo or carries is not None) else 0
    _check_carries(carries, bits, batch, undo)
    kept = tuple(torch.empty((len(saves), batch, dim), dtype=slots[0].dtype) for _ in slots)
    call = _Call(native, programs, period, slots, frac_bits, tableau, carries if fixed else None, h, t0, undo, threads, lanes, isa)
    evaluations, largest, done, row, chunk = 0, 0.0, 0, 0, 1
    for begin, count, every in _blocks(position, steps, undo, saves):
        taken = 0
        while taken < count:
            n = begin - taken if undo else begin + taken
            now = call.longest(n, min(chunk, count - taken))
            until = every - taken % every if every else 0
            rows = tuple(k[row].data_ptr() if every and row < len(saves) else 0 for k in kept)
            start = time.perf_counter()
            more, bad_step, bad_system, high = call(n, now, every, until, rows)
            seconds = time.perf_counter() - start
            evaluations, largest = evaluations + more - (call.shared(n) if done else 0), max(largest, high)
            if bad_step >= 0:
                return Ran(evaluations, largest, bad_step, bad_system, kept)
            row += (taken + now) // every - taken // every if every else 0
            taken, done = taken + now, done + now
            chunk = max(1, min(8 * chunk, int(now * CHUNK_SECONDS / max(seconds, 1e-9))))
            if progress is not None:
                progress(done, steps)
    return Ran(evaluations, largest, -1, -1, kept)


class _Call:
    """The arguments of one call into C++ that stay the same over a run."""

    def __init__(self, native, programs, period, slots, frac_bits, tableau, carries, h, t0, undo, threads, lanes, isa):
        self.native, self.programs, self.period, self.slots, self.carries, self.h, self.undo = native, programs, period, slots, carries, h, undo
        self.fixed = frac_bits is not None
        self.state = (*(s.data_ptr() for s in slots), slots[0].shape[0], slots[0].shape[1], self.fixed)
        self.alive = tuple(b.to(torch.int32).contiguous() for b in frac_bits) if frac_bits is not None else ()
        self.units = tuple(b.data_ptr() for b in self.alive) if self.fixed else (0, 0)
        self.clock = (t0, h)
        self.field = (native.number, list(native.params), native.pointers, native.user_data)
        self.tableau = _square(tableau)
        self.threads = (threads, lanes, isa)
        self.known: dict[int, list] = {}

    def longest(self, n: int, wanted: int) -> int:
        """Steps from ``n`` on (or back) that one list of programs serves, at most ``wanted``: step 0 may differ from all others."""
        if self.period is None:
            return min(wanted, _PROGRAMS)
        if self.undo:
            return wanted if n == 1 or n - wanted > 0 else n - 1
        return 1 if n == 0 else wanted

    def shared(self, n: int) -> int:
        """Evaluations that the step from ``n`` on (or back) would have had from the step before it, had one call taken both."""
        programs = [self._rows(k) for k in ((n, n - 1) if self.undo else (n - 1, n))]
        kept: dict[int, tuple[int, float]] = {}
        count = 0
        for step, program in enumerate(programs):
            clock = -step if self.undo else step
            for slot, function, rk_sign, *_, tau in reversed(program) if self.undo else program:
                source = 1 - slot
                kept.pop(slot, None)
                if function < 0:
                    continue
                value = (function, clock + tau if self.native.number == USER else 0.0)
                count += step == 1 and rk_sign == 0 and kept.get(source) == value
                kept.pop(source, None)
                if step == 0 and rk_sign == 0:
                    kept[source] = value
        return count

    def __call__(self, n: int, steps: int, every: int, until: int, rows: tuple[int, int]) -> tuple[int, int, int, float]:
        low = n - steps if self.undo else n
        micros, counts = self._programs(low, steps)
        carry = (self.carries.rows.data_ptr(), self.carries.rows.stride(0), self.carries.at) if self.carries is not None else (0, 0, 0)
        evaluations, bad_step, bad_system, largest, at = _C.ode_run(
            *self.state, *self.units, micros, counts, *self.clock, n, steps, self.undo, *self.field, *self.tableau, *rows, every, until, *carry, *self.threads
        )
        if self.carries is not None:
            self.carries.at = at
        return evaluations, bad_step, bad_system, largest

    def _programs(self, low: int, steps: int) -> tuple[list, list[int]]:
        """Of steps ``low`` and after, in the order in which C++ counts them: the program of step n is number n % period."""
        if self.period is not None and low > 0:
            period, low = self.period, 1
        else:
            period = max(1, steps) if self.period is None else 1
        listed = {n % period: n for n in range(low, low + period)}
        rows = [self._rows(listed[k]) for k in range(period)]
        return [row for program in rows for row in program], [len(program) for program in rows]

    def _rows(self, n: int) -> list:
        key = n if self.period is None or n == 0 else 1 + (n - 1) % self.period
        if key not in self.known:
            if len(self.known) > _PROGRAMS:
                self.known.clear()
            self.known[key] = [self._row(m) for m in self.programs(n)]
        return self.known[key]

    def _row(self, m: Micro) -> tuple:
        function = -1 if m.field == IDENTITY else self.native.functions[m.field]
        return (m.slot, function, m.rk_sign, float(m.alpha), float(m.beta), float(m.gamma(self.h)), float(m.tau))


def _blocks(position: int, steps: int, undo: bool, saves: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches ``(first position, steps, save_every)`` with saves at equal distances and at their ends, then what is left (0: none)."""
    sign = -1 if undo else 1
    gaps, at = [], position
    for save in saves:
        gaps.append(sign * (save - at))
        if gaps[-1] < 1 or sign * (save - position) > steps:
            raise ConfigError(
                f"save at step {save} comes after {at}: expected steps within the run, in the order in which it comes by, the start not among them"
            )
        at = save
    at, k = position, 0
    while k < len(gaps):
        same = k
        while same < len(gaps) and gaps[same] == gaps[k]:
            same += 1
        yield at, (same - k) * gaps[k], gaps[k]
        at, k = at + sign * (same - k) * gaps[k], same
    if sign * (at - position) < steps:
        yield at, steps - sign * (at - position), 0


def _check_run(steps: int, low: int, threads: Any) -> None:
    if steps < 0 or low < 0:
        raise ConfigError(f"{steps} steps, the first of them number {low}: expected non-negative numbers, and no step below 0")
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ConfigError(f"threads is {threads!r}, expected a positive integer")


def _check_carries(carries: Carries | None, bits: int, batch: int, undo: bool) -> None:
    if carries is None:
        if undo and bits:
            raise ConfigError("micro-steps with |alpha| < 1 cannot be undone without carries: pass the Carries of the way forwards")
        return
    if carries.rows.shape[0] != batch:
        raise ConfigError(f"carries has {carries.rows.shape[0]} rows, expected one a system, {batch}")
    if bits > carries.at if undo else carries.at + bits > carries.bits:
        raise ConfigError(f"{bits} carry bits a system, but carries is at {carries.at} of {carries.bits}: make it with carry_bits() of all steps")


def _square(tableau: Tableau | None) -> tuple[list[float], list[float], list[float]]:
    if tableau is None:
        return [], [], []
    stages = len(tableau.b)
    a = [[float(row[j]) if j < len(row) else 0.0 for j in range(stages)] for row in tableau.a]
    return [x for row in a for x in row], [float(x) for x in tableau.b], [float(x) for x in tableau.c]


def _check_slots(slots: tuple[Tensor, Tensor], frac_bits: tuple[Tensor, Tensor] | None) -> tuple[int, int, bool]:
    a, b = slots
    for s in slots:
        if s.device.type != "cpu" or s.dtype not in (torch.int64, torch.float64) or s.ndim != 2 or not s.is_contiguous():
            raise ConfigError(f"a slot is {tuple(s.shape)} {s.dtype} on {s.device}, expected a contiguous (batch, dim) int64 or float64 tensor on the CPU")
        if s.requires_grad:
            raise ConfigError("a slot requires a gradient, which the compiled loop cannot give: detach it, or take the loop on tensors")
    if a.shape != b.shape or a.dtype != b.dtype or (a.numel() and a.data_ptr() == b.data_ptr()):
        raise ConfigError(f"the slots are {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}, expected two tensors of one shape and dtype")
    fixed = a.dtype == torch.int64
    if fixed != (frac_bits is not None):
        raise ConfigError(
            f"slots are {a.dtype} and frac_bits is {'given' if frac_bits is not None else 'missing'}: int64 slots need it, float64 slots have none"
        )
    if fixed and a.numel():
        low, high = (min(int(s.min()) for s in slots), max(int(s.max()) for s in slots))
        if max(-low, high) > LIMIT:
            raise ConfigError(f"the slots reach from {low} to {high}, expected at most 2**62 - 1 in magnitude")
    if frac_bits is not None and any(f.shape != (a.shape[1],) for f in frac_bits):
        raise ConfigError(f"frac_bits have shapes {[tuple(f.shape) for f in frac_bits]}, expected one number a component, ({a.shape[1]},)")
    if frac_bits is not None and a.shape[1] and any(int(f.abs().max()) > MAX_FRAC_BITS for f in frac_bits):
        raise ConfigError(f"frac_bits go up to {[int(f.abs().max()) for f in frac_bits]} in magnitude, expected at most {MAX_FRAC_BITS}: units nearer to 1")
    return a.shape[0], a.shape[1], fixed


MATH = ("sin", "cos", "exp")


def math_of(function: str, x: Tensor, isa: int = -1) -> Tensor:
    """sin, cos or exp as the compiled fields compute it: the same bits on every machine."""
    if function not in MATH:
        raise ConfigError(f"no function {function!r}, expected one of {MATH}")
    x = x.detach().to(torch.float64).contiguous()
    out = torch.empty_like(x)
    _C.ode_math(MATH.index(function), x.data_ptr(), out.data_ptr(), x.numel(), isa)
    return out
