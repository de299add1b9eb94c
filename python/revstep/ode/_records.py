"""What a run of the compiled loop is given and leaves beside its slots: carries, a watch, failures, the order
of its micro-steps; and the checks of all that before it begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError
from .methods._base import Micro

# ------------------------------------------------------------------------------------------------------------
# What a compiled run is given beside its slots, and what it demands of all of them.

#: Largest magnitude of an integer state.
LIMIT = 2**62 - 1
#: Units are 2**-256 to 2**256.
MAX_FRAC_BITS = 256
#: A run forwards looks at its first steps, and then at two of every octave: see :func:`looked_at`.
EVERY_STEP_UNTIL = 4


class Carries:
    """The bits that |alpha| < 1 costs: a row a system, written forwards and read on the way back.

    Args:
        bits: of each row: :func:`carry_bits` of the steps to come.
    """

    def __init__(self, batch: int, bits: int):
        self.rows = torch.zeros((batch, (bits + 7) // 8), dtype=torch.uint8)
        self.bits = bits
        self.at = 0

    @property
    def nbytes(self) -> int:
        return self.rows.numel()


def looked_at(n: int) -> bool:
    """Whether step ``n`` is looked at: 0, 1, 2, 3, and then 4, 6, 8, 12, 16, 24, 32, ..., as ode_looked_at
    has it.
    """
    odd = n // 3 if n % 3 == 0 else n
    return n < EVERY_STEP_UNTIL or odd & (odd - 1) == 0


class Watch:
    """What a run forwards notices of its own numbers, accumulated over calls, on the steps that are looked at
    alone.

    Which steps are looked at says :func:`looked_at`.

    Args:
        batch: how many systems there are.
        dim: components of one system.
        increments: record ``zero`` and ``high``, which only fixed-point slots have.
        copies: record ``apart``: both slots hold the same quantity.

    Attributes:
        zero: a slot: int64 ``(batch, dim)``, how many increments were not zero and were rounded to zero.
        high: a slot: int64 ``(batch, dim)``, the largest magnitude of an increment, in units of the integer
            state.
        apart: float64 ``(batch,)``, the largest distance between a component of one slot and the same of the
            other after a step, in the units of the equation.
        apart_at: int64 ``(batch,)``, the step after which it was found; -1 where the slots never differed.
    """

    def __init__(self, batch: int, dim: int, increments: bool = True, copies: bool = True):
        self.increments = increments
        self.copies = copies
        self.zero = tuple(torch.zeros((batch, dim), dtype=torch.int64) for _ in range(2))
        self.high = tuple(torch.zeros((batch, dim), dtype=torch.int64) for _ in range(2))
        self.apart = torch.zeros(batch, dtype=torch.float64)
        self.apart_at = torch.full((batch,), -1, dtype=torch.int64)

    def connect(self, run: Any, fixed: bool) -> None:
        """Have ``run``, of the extension, write into these tensors what it notices."""
        if self.increments and fixed:
            run.zero = self.zero[0].data_ptr(), self.zero[1].data_ptr()
            run.high = self.high[0].data_ptr(), self.high[1].data_ptr()
        if self.copies:
            run.apart = self.apart.data_ptr()
            run.apart_at = self.apart_at.data_ptr()


class Failures:
    """Which systems of a run have failed while the others go on.

    Args:
        batch: how many systems there are.

    Attributes:
        step: int64 ``(batch,)``, the step in which each failed; -1 for one that is well. Those that have
            failed are left alone.
        value: float64 ``(batch,)``, the magnitude that did not fit, as ``Ran.largest`` has it; 0 for one that
            is well.
    """

    def __init__(self, batch: int):
        self.step = torch.full((batch,), -1, dtype=torch.int64)
        self.value = torch.zeros(batch, dtype=torch.float64)

    def fill(
        self, saved: tuple[Tensor, Tensor], slots: tuple[Tensor, Tensor], saves: Sequence[int], undo: bool
    ) -> None:
        """Give the saves that a failed system did not reach the last state of it that was right."""
        for system in self.step.ge(0).nonzero().flatten().tolist():
            step = int(self.step[system])
            late = [row for row, save in enumerate(saves) if (save <= step if undo else save > step)]
            for values, slot in zip(saved, slots):
                values[late, system] = slot[system]


def blocks(position: int, steps: int, undo: bool, saves: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Stretches ``(first position, steps, save_every)`` with saves at equal distances and at their ends, then
    what is left (0: none).
    """
    sign = -1 if undo else 1
    gaps = []
    at = position
    for save in saves:
        gaps.append(sign * (save - at))
        if gaps[-1] < 1 or sign * (save - position) > steps:
            raise ConfigError(
                f"save at step {save} comes after {at}: expected steps within the run, in the order in which"
                " it comes by, the start not among them"
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


def check_run(
    steps: int,
    low: int,
    threads: Any,
    batch: int,
    dim: int,
    interval: tuple,
    watch: Watch | None,
    keep_going: Any,
) -> None:
    if steps < 0 or low < 0:
        raise ConfigError(
            f"{steps} steps, the first of them number {low}: expected non-negative numbers, and no step"
            " below 0"
        )
    if isinstance(threads, bool) or not isinstance(threads, (int, np.integer)) or threads < 1:
        raise ConfigError(f"threads is {threads!r}, expected a positive integer")
    if not interval[0] <= interval[1]:
        raise ConfigError(f"interval is {interval}, expected the least and the greatest time, in this order")
    if watch is not None and tuple(watch.zero[0].shape) != (batch, dim):
        raise ConfigError(
            f"watch is for {tuple(watch.zero[0].shape)} numbers, the slots have ({batch}, {dim}): make it"
            " with these"
        )
    if isinstance(keep_going, Failures) and len(keep_going.step) != batch:
        raise ConfigError(
            f"keep_going knows {len(keep_going.step)} systems, the slots have {batch}: give the one of this"
            " batch"
        )


def check_carries(carries: Carries | None, bits: int, batch: int, undo: bool) -> None:
    if carries is None:
        if undo and bits:
            raise ConfigError(
                "micro-steps with |alpha| < 1 cannot be undone without carries: pass the Carries of the way"
                " forwards"
            )
        return
    if carries.rows.shape[0] != batch:
        raise ConfigError(f"carries has {carries.rows.shape[0]} rows, expected one a system, {batch}")
    if bits > carries.at if undo else carries.at + bits > carries.bits:
        raise ConfigError(
            f"{bits} carry bits a system, but carries is at {carries.at} of {carries.bits}: make it with"
            " carry_bits() of all steps"
        )


def check_slots(
    slots: tuple[Tensor, Tensor], frac_bits: tuple[Tensor, Tensor] | None
) -> tuple[int, int, bool]:
    a, b = slots
    for s in slots:
        if (
            s.device.type != "cpu"
            or s.dtype not in (torch.int64, torch.float64)
            or s.ndim != 2
            or not s.is_contiguous()
        ):
            raise ConfigError(
                f"a slot is {tuple(s.shape)} {s.dtype} on {s.device}, expected a contiguous (batch, dim)"
                " int64 or float64 tensor on the CPU"
            )
        if s.requires_grad:
            raise ConfigError(
                "a slot requires a gradient, which the compiled loop cannot give: detach it, or take the loop"
                " on tensors"
            )
    if a.shape != b.shape or a.dtype != b.dtype or (a.numel() and a.data_ptr() == b.data_ptr()):
        raise ConfigError(
            f"the slots are {tuple(a.shape)} {a.dtype} and {tuple(b.shape)} {b.dtype}, expected two tensors"
            " of one shape and dtype"
        )
    fixed = a.dtype == torch.int64
    if fixed != (frac_bits is not None):
        raise ConfigError(
            f"slots are {a.dtype} and frac_bits is {'given' if frac_bits is not None else 'missing'}: int64"
            " slots need it, float64 slots have none"
        )
    if fixed and a.numel():
        low, high = (min(int(s.min()) for s in slots), max(int(s.max()) for s in slots))
        if max(-low, high) > LIMIT:
            raise ConfigError(
                f"the slots reach from {low} to {high}, expected at most 2**62 - 1 in magnitude"
            )
    shapes = () if frac_bits is None else tuple(tuple(f.shape) for f in frac_bits)
    if frac_bits is not None and shapes not in (((a.shape[1],),) * 2, (tuple(a.shape),) * 2):
        raise ConfigError(
            f"frac_bits have shapes {list(shapes)}, expected one number a component, ({a.shape[1]},), or one"
            f" a component of every system, {tuple(a.shape)}, and both slots alike"
        )
    highest = [int(f.abs().max()) for f in frac_bits or () if f.numel()]
    if any(bits > MAX_FRAC_BITS for bits in highest):
        raise ConfigError(
            f"frac_bits go up to {highest} in magnitude, expected at most {MAX_FRAC_BITS}: units nearer to 1"
        )
    return a.shape[0], a.shape[1], fixed


# ------------------------------------------------------------------------------------------------------------
# Which micro-steps a step of the compiled loop has, and how many carry bits steps fill.

#: Programs that a call may carry when every step has its own.
MOST = 1024


Programs = Callable[[int], Sequence[Micro]]


@dataclass(frozen=True)
class Order:
    """Which program a step has: steps ``first <= n < last`` follow a period (None: no step does), all others
    have their own.
    """

    period: int | None
    first: int = 1
    last: float = math.inf

    @staticmethod
    def of(period: int | None, regular: tuple[int, int | None]) -> Order:
        first, last = regular
        if period is None:
            return Order(None, 0, 0)
        if period < 1 or first < 0 or (last is not None and last < first):
            got = f"period is {period} from step {first} to {last}"
            raise ConfigError(f"{got}: expected a positive period, and steps in rising order")
        return Order(period, first, math.inf if last is None else last)

    def stretch(self, low: int, high: int, undo: bool) -> int:
        """How many of the steps ``low <= n < high`` one call can take, from the first on, or from the last
        back.
        """
        # A call has one list of programs, so it ends where steps that repeat theirs begin or end; steps with
        # programs of their own are listed one by one, ``MOST`` at a time.
        n = high - 1 if undo else low
        if self.period is not None and self.first <= n < self.last:
            return high - max(low, self.first) if undo else int(min(high, self.last)) - low
        if self.period is None:
            end = low if undo else high
        elif undo:
            end = max(low, int(self.last)) if n >= self.last else low
        else:
            end = min(high, self.first) if n < self.first else high
        return min(abs(end - (high if undo else low)), MOST)

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
    :func:`._compiled.run` has it.
    """
    order = Order.of(period, regular)
    end = position + steps
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
