"""What a method is: micro-steps on two slots, and claims about it as data.

A *micro-step* is the recurrence of this package on one of two slots,

    slot[i] <- alpha slot[i] + beta slot[1-i] + gamma Phi(t, slot[1-i]),    t = t0 + (n + tau) h,    gamma = c
    h**k,

so that it can be undone exactly in fixed point whatever Phi is. Two-step schemes, splittings and reversible
Runge-Kutta methods differ only in their lists of micro-steps.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ... import ops
from ...errors import ConfigError
from ...schemes import Claims, Coefficients
from .._equations import WRITTEN
from .._functions import IDENTITY
from ..tableaus import Tableau

#: Which function a micro-step evaluates: the first (f or F), the second (G), or none (``IDENTITY``: Phi(t, x)
#: = x).
F, G = 0, 1
#: What sums of a method's coefficients may be off from 0 or 1: they are rounded numbers.
_ROUNDING = 2.0**-40


@dataclass(frozen=True)
class Micro:
    """One micro-step. ``rk_sign`` 0: Phi is the function itself; +1, -1: the increment Psi of the method's
    tableau with h or -h.
    """

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

    def coefficients(self, h: float) -> Coefficients:
        return Coefficients(self.alpha, self.beta, self.gamma_coef * h**self.gamma_power)

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
        apart_limit: of methods with :meth:`copies`, the largest distance of the two copies at which a run
            is still to be trusted, as a share of the size of the state (its largest unit or value so far).
            None: the slots are no copies.
        rotations: it can be trusted where f only turns the state, as in y' = -i H y; complex starts need
            that.
    """

    name: str
    equations: ClassVar[tuple[str, ...]]
    tableau: Tableau | None = None
    period: int | None = 1
    apart_limit: ClassVar[float | None] = None
    rotations: ClassVar[bool] = True

    @abc.abstractmethod
    def claims(self, equation: str) -> Claims:
        """Order and properties on an equation kind; measured by ``revstep verify``."""

    @abc.abstractmethod
    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        """The micro-steps of step ``n``, in order."""

    @abc.abstractmethod
    def begin(self, equation: str, y0: Any, h: Any) -> Slots:
        """The two slots at step 0, in floats; differentiable. ``y0``: a tensor, or a pair for the kinds that
        need one.
        """

    @abc.abstractmethod
    def read(
        self, equation: str, n: int, slots: Slots, t: Any, h: Any, f: Callable[..., Tensor]
    ) -> tuple[Tensor, ...]:
        """``(y,)``, ``(q, v)`` or ``(q, p)`` at step ``n`` from the slots' float values; differentiable.
        ``f``: the first function.
        """

    def copies(self, equation: str) -> bool:
        """Whether both slots hold y at the same time, so that their distance says how far the method's
        second solution has come.
        """
        return False

    def parasite(self, equation: str) -> str | None:
        """One sentence on the second solution that the method carries on this equation and what to take
        where it grows; None: it has none.
        """
        return None

    def reach(self, equation: str) -> tuple[float, float]:
        """The least and the largest time at which a step evaluates the field, in steps from its start: (0,
        1) where it looks at nothing else.

        From the micro-steps themselves. A value within rounding of 0 or 1 is that.
        """
        taus = [0.0, 1.0]
        for n in (0, 1, 2):
            for micro in self.micros(n, equation):
                if micro.field != IDENTITY:
                    nodes = self.tableau.c if micro.rk_sign and self.tableau else (0.0,)
                    taus += [micro.tau + micro.rk_sign * c for c in nodes]
        low, high = min(taus), max(taus)
        return (0.0 if low > -_ROUNDING else low), (1.0 if high < 1.0 + _ROUNDING else high)

    def check(self, equation: str, steps: int) -> None:
        """Raises ConfigError when it cannot take this many steps of this equation."""
        if equation not in self.equations:
            known = ", ".join(WRITTEN[e] for e in self.equations)
            from ._registry import DEFAULT, available  # which knows this module

            fitting = ", ".join(name for name, method in available().items() if equation in method.equations)
            what = f"{self.name} integrates {known}; got a field of {WRITTEN[equation]}"
            raise ConfigError(f"{what}: leave scheme out for {DEFAULT[equation]!r}, or take one of {fitting}")
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
            raise ConfigError(f"steps is {steps!r}, expected a non-negative integer")
