"""What the measurements of integrations are tried against: the stored oracle of an integration, which they
must agree with, and methods broken on purpose, which they must reject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from revstep.ode import _starts
from revstep.ode._equations import as_field
from revstep.ode._problem import Grid, Problem, increment
from revstep.ode.methods import Method, Micro, available
from revstep.ode.methods._base import IDENTITY, Slots
from revstep.ops import reference
from revstep.schemes import Claims

# ------------------------------------------------------------------------------------------------------------
# The stored oracle of an integration: ordinary autograd through every micro-step, pure-torch reference
# arithmetic.


class _Rounded(torch.autograd.Function):
    """A state computed elsewhere, with the gradient of ``alpha own + beta other + gamma value`` (rounding is
    the identity).
    """

    @staticmethod
    def forward(
        ctx: Any, view: Tensor, alpha: float, beta: float, own: Tensor, other: Tensor, scaled: Tensor
    ) -> Tensor:
        ctx.alpha, ctx.beta = alpha, beta
        return view

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return None, None, None, g * ctx.alpha, g * ctx.beta if ctx.beta else None, g


def stored(
    field: Any,
    y0: Any,
    *,
    method: Method,
    grid: Grid,
    h: Any,
    steps: int,
    t0: Any = 0.0,
    args: Sequence[Any] = (),
) -> tuple[Tensor, ...]:
    """The parts of the solution at the last step, as ``integrate`` computes them, with everything stored.

    Shares with ``integrate`` the method's data, the grid and the Runge-Kutta increment; not its loop, kernels
    or gradients. ``y0``: torch tensors. ``h``, ``t0``: numbers or scalar tensors.
    """
    field = as_field(field, _starts.read(y0), args)
    equation, functions, fmt = field.equation, field.functions(), grid.format
    values = list(method.begin(equation, y0, h))
    dtype = values[0].dtype
    states = [
        reference.encode(grid.into(i, x.detach()), fmt.dtype, fmt.frac_bits, None)[1]
        for i, x in enumerate(values)
    ]
    numbers = (float(torch.as_tensor(x).detach()) for x in (h, t0))
    problem = Problem(method, equation, functions, grid, dtype, *numbers, steps, (0, steps))

    def view(i: int) -> Tensor:
        return reference.decode(states[i], fmt.frac_bits, dtype) * grid.scales[i]

    def clock(n: int, tau: float) -> Tensor:
        """The time of an evaluation, with the graph of h and t0."""
        t = t0 + (n + tau) * h
        exact = torch.tensor(problem.time(n, tau), dtype=torch.float64)
        return exact + (t - t.detach()) if isinstance(t, Tensor) else exact

    values = [_Rounded.apply(view(i), 1.0, 0.0, x, x, torch.zeros_like(x)) for i, x in enumerate(values)]
    for n in range(steps):
        for m in problem.micros(n):
            i, other = m.slot, values[1 - m.slot]
            t = clock(n, m.tau)
            if m.field == IDENTITY:
                value = other
            elif m.rk_sign:
                # other.view_as: its stages' gradients are summed first
                stages = (t, m.rk_sign * h, other.view_as(other), args, problem.limits)
                value = increment(method.tableau, functions[m.field], *stages)
            else:
                value = functions[m.field](t, other, *args)
            gamma = m.gamma_coef * h**m.gamma_power
            states[i] = reference.step(
                states[i],
                states[1 - i],
                grid.into(i, value.detach()),
                m.alpha,
                m.beta,
                float(torch.as_tensor(gamma).detach()),
                fmt.frac_bits,
                None,
            )[1]
            values[i] = _Rounded.apply(view(i), m.alpha, m.beta, values[i], other, value * gamma)
    t_end = t0 + steps * h

    def first(t, x):
        return functions[0](t if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64), x, *args)

    return method.read(equation, steps, (values[0], values[1]), t_end, h, first)


# ------------------------------------------------------------------------------------------------------------
# Methods broken on purpose, which the measurements of this package must reject.

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
