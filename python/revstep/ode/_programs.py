"""Which micro-steps a step of the compiled loop has, and how many carry bits steps fill."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import ConfigError
from .methods._base import Micro

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
    """Bits of a :class:`._records.Carries` row that ``steps`` steps from ``position`` on fill; ``regular`` as
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
