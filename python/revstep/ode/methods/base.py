"""What a method is: micro-steps on two slots, and claims about it as data.

A *micro-step* is the recurrence of this package on one of two slots,

    slot[i] <- alpha slot[i] + beta slot[1-i] + gamma Phi(t, slot[1-i]),    t = t0 + (n + tau) h,    gamma = c h**k,

so that it can be undone exactly in fixed point whatever Phi is. Two-step schemes, splittings and reversible Runge-Kutta
methods differ only in their lists of micro-steps.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ... import ops
from ...errors import ConfigError
from ...schemes import Claims
from ..equations import WRITTEN
from ..tableaus import Tableau

#: Which function a micro-step evaluates: the first (f or F), the second (G), or none (Phi(t, x) = x).
F, G, IDENTITY = 0, 1, 2


@dataclass(frozen=True)
class Micro:
    """One micro-step. ``rk_sign`` 0: Phi is the function itself; +1, -1: the increment Psi of the method's tableau with h or -h."""

    slot: int
    alpha: float
    beta: float
    gamma_coef: float
    gamma_power: int
    field: int
    tau: float
    rk_sign: int = 0

    def gamma(self, h: float) -> float:
        """c h**k."""
        return self.gamma_coef * h**self.gamma_power

    def gamma_slope(self, h: float) -> float:
        """d gamma / dh."""
        k = self.gamma_power
        return 0.0 if k == 0 else self.gamma_coef * k * h ** (k - 1)

    @property
    def carry_bits(self) -> int:
        """Bits an element that an exact inverse needs."""
        return ops.carry_bits(self.alpha)


Slots = tuple[Tensor, Tensor]


class Method(abc.ABC):
    """An integration method. Frozen dataclasses; one file a family, instances from data.

    Attributes:
        name: registry key.
        equations: the kinds it serves, of ``"first"``, ``"second"``, ``"separable"``.
        tableau: of the base step, for methods whose micro-steps have ``rk_sign``.
        period: ``micros(n, ...)`` repeats after this many steps from step 1 on; None: it never does.
    """

    name: str
    equations: ClassVar[tuple[str, ...]]
    tableau: Tableau | None = None
    period: int | None = 1

    @abc.abstractmethod
    def claims(self, equation: str) -> Claims:
        """Order and properties on an equation kind; measured by ``revstep verify``."""

    @abc.abstractmethod
    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        """The micro-steps of step ``n``, in order."""

    @abc.abstractmethod
    def begin(self, equation: str, y0: Any, h: Any) -> Slots:
        """The two slots at step 0, in floats; differentiable. ``y0``: a tensor, or a pair for the kinds that need one."""

    @abc.abstractmethod
    def read(self, equation: str, n: int, slots: Slots, t: Any, h: Any, f: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        """``(y,)``, ``(q, v)`` or ``(q, p)`` at step ``n`` from the slots' float values; differentiable. ``f``: the first function."""

    def check(self, equation: str, steps: int) -> None:
        """Raises ConfigError when it cannot take this many steps of this equation."""
        if equation not in self.equations:
            known = ", ".join(WRITTEN[e] for e in self.equations)
            raise ConfigError(f"{self.name} integrates {known}; got a field of {WRITTEN[equation]}: choose a method for it, see revstep.ode.available()")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ConfigError(f"steps is {steps!r}, expected a non-negative integer")
