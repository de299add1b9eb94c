"""Methods broken on purpose, which the measurements of this package must reject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from revstep.ode.methods import Method, Micro, available
from revstep.ode.methods._base import Slots
from revstep.schemes import Claims

Change = Callable[[tuple[Micro, ...]], tuple[Micro, ...]]


@dataclass(frozen=True)
class Altered(Method):
    """A method with other micro-steps, and the claims of the original unless others are given."""

    base: Method
    change: Change
    claimed: Claims | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"broken {self.base.name}")
        for attribute in ("equations", "tableau", "period", "apart_limit"):
            object.__setattr__(self, attribute, getattr(self.base, attribute))

    def claims(self, equation: str) -> Claims:
        return self.claimed or self.base.claims(equation)

    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        return self.change(self.base.micros(n, equation))

    def begin(self, equation: str, y0: Any, h: Any) -> Slots:
        return self.base.begin(equation, y0, h)

    def read(
        self, equation: str, n: int, slots: Slots, t: Any, h: Any, f: Callable[..., Tensor]
    ) -> tuple[Tensor, ...]:
        return self.base.read(equation, n, slots, t, h, f)

    def copies(self, equation: str) -> bool:
        return self.base.copies(equation)

    def parasite(self, equation: str) -> str | None:
        return self.base.parasite(equation)


def altered(name: str, change: Change, **claims: Any) -> Altered:
    """A registered method with its micro-steps changed; ``claims``: what it says of itself differently."""
    base = available()[name]
    claimed = replace(base.claims(base.equations[0]), **claims) if claims else None
    return Altered(base, change, claimed)


def scaled(factor: float, which: int = 0) -> Change:
    """The increment of micro-step ``which`` times ``factor``: -1 flips a sign, 0 drops it."""
    return lambda micros: tuple(
        replace(m, gamma_coef=m.gamma_coef * factor) if k == which else m for k, m in enumerate(micros)
    )


def retimed(tau: float) -> Change:
    """All functions see the same time of the step: right on autonomous fields only."""
    return lambda micros: tuple(replace(m, tau=tau) for m in micros)


def damped(alpha: float) -> Change:
    """Every micro-step keeps only ``alpha`` of its slot."""
    return lambda micros: tuple(replace(m, alpha=alpha) for m in micros)
