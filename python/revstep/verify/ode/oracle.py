"""The stored oracle of an integration: ordinary autograd through every micro-step, pure-torch reference arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ode.equations import as_field
from ...ode.methods import Method
from ...ode.problem import Grid, increment
from ...ops import reference


class _Rounded(torch.autograd.Function):
    """A state computed elsewhere, with the gradient of ``alpha own + beta other + gamma value`` (rounding is the identity)."""

    @staticmethod
    def forward(ctx: Any, view: Tensor, alpha: float, beta: float, own: Tensor, other: Tensor, scaled: Tensor) -> Tensor:
        ctx.alpha, ctx.beta = alpha, beta
        return view

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        return None, None, None, g * ctx.alpha, g * ctx.beta if ctx.beta else None, g


def stored(field: Any, y0: Any, *, method: Method, grid: Grid, h: Any, steps: int, t0: Any = 0.0, args: Sequence[Any] = ()) -> tuple[Tensor, ...]:
    """The parts of the solution at the last step, as ``integrate`` computes them, with everything stored.

    Shares with ``integrate`` the method's data, the grid and the Runge-Kutta increment; not its loop, kernels or gradients.
    ``y0``: torch tensors. ``h``, ``t0``: numbers or scalar tensors.
    """
    field = as_field(field, y0)
    equation, functions, fmt = field.equation, field.functions(), grid.format
    values = list(method.begin(equation, y0, h))
    dtype = values[0].dtype
    states = [reference.encode(grid.into(i, x.detach()), fmt.dtype, fmt.frac_bits, None)[1] for i, x in enumerate(values)]

    def view(i: int) -> Tensor:
        return reference.decode(states[i], fmt.frac_bits, dtype) * grid.scales[i]

    values = [_Rounded.apply(view(i), 1.0, 0.0, x, x, torch.zeros_like(x)) for i, x in enumerate(values)]
    for n in range(steps):
        for m in method.micros(n, equation):
            i, other = m.slot, values[1 - m.slot]
            t = t0 + (n + m.tau) * h
            t = t.to(dtype) if isinstance(t, Tensor) else torch.tensor(t, dtype=dtype)
            if m.field == 2:
                value = other
            elif m.rk_sign:
                value = increment(method.tableau, functions[m.field], t, m.rk_sign * h, other.view_as(other), args)  # its stages' gradients are summed first
            else:
                value = functions[m.field](t, other, *args)
            gamma = m.gamma_coef * h**m.gamma_power
            states[i] = reference.step(
                states[i], states[1 - i], grid.into(i, value.detach()), m.alpha, m.beta, float(torch.as_tensor(gamma).detach()), fmt.frac_bits, None
            )[1]
            values[i] = _Rounded.apply(view(i), m.alpha, m.beta, values[i], other, value * gamma)
    t_end = t0 + steps * h
    first = lambda t, x: functions[0](t if isinstance(t, Tensor) else torch.tensor(t, dtype=dtype), x, *args)  # noqa: E731
    return method.read(equation, steps, (values[0], values[1]), t_end, h, first)
