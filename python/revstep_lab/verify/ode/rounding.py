"""Every increment is rounded to the nearest grid point, half to even: states of both loops against Python's
own integers.

Fields are constant, F = c and G = d, so that a run can be followed exactly: an increment is the integer
nearest to the float64 product gamma c, in units of the grid. A quantiser that truncates is reversible all the
same, and drifts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from revstep.errors import ResolutionWarning
from revstep.ode import compositions, integrate
from revstep.ode._equations import FIRST, SECOND, SEPARABLE, FirstOrder, SecondOrder, Separable
from revstep.ode._functions import CFUNCTYPE, CompiledField
from revstep.ode._problem import increment
from revstep.ode.methods import Method
from revstep.ode.methods._base import IDENTITY
from revstep.state import FixedPoint
from revstep.verify._checks import Result

from .checksum import Restless

NAME = "rounding"
STATE, H, STEPS, SIZE = FixedPoint(64, 40), 0.0625, 6, 200
_ONE = 1 << 24


def _constants() -> tuple[np.ndarray, np.ndarray]:
    """Two values a component; every fourth makes increments that fall between two grid points of a simple
    gamma.
    """
    g = np.random.default_rng(7)
    c, d = g.normal(size=SIZE), g.normal(size=SIZE)
    c[::4] = d[::4] = (2 * g.integers(-500, 500, SIZE // 4) + 1) * 2.0**-37
    return c, d


def _times(coefficient: float, x: int) -> int:
    """r(A x): to nearest, ties upwards."""
    return (int(coefficient * _ONE) * x + _ONE // 2) >> 24


def expected(
    method: Method, equation: str, start: Sequence[Sequence[int]], phi: Sequence[np.ndarray]
) -> list[list[int]]:
    """The slots after the run, in integers; ``phi``: values of functions 0 and 1."""
    slots = [list(map(int, s)) for s in start]
    for n in range(STEPS):
        for m in method.micros(n, equation):
            own, other = slots[m.slot], slots[1 - m.slot]
            values = (
                [float(x) * 2.0**-STATE.frac_bits for x in other]
                if m.field == IDENTITY
                else _value(method, m.rk_sign, phi[m.field])
            )
            gamma = m.gamma(H)
            # Python rounds half to even.
            moves = (round(Fraction(float(v) * gamma) * 2**STATE.frac_bits) for v in values)
            slots[m.slot] = [_times(m.alpha, x) + _times(m.beta, y) + d for x, y, d in zip(own, other, moves)]
    return slots


def _value(method: Method, sign: int, c: np.ndarray) -> Sequence[float]:
    if not sign:
        return c
    value = torch.from_numpy(c)
    return increment(
        method.tableau, lambda t, x: value, torch.zeros(()), sign * H, torch.zeros_like(value), ()
    ).numpy()


def _fields(equation: str, c: np.ndarray, d: np.ndarray) -> tuple[Any, Any]:
    """``(for the loop on tensors, for the compiled loop)``."""
    first, second = torch.from_numpy(c), torch.from_numpy(d)
    wrap = {FIRST: FirstOrder, SECOND: SecondOrder, SEPARABLE: Separable}[equation]
    on_tensors = wrap(
        *(lambda t, x, v=v: v for v in ((first, second) if equation == SEPARABLE else (first,)))
    )

    def constant(values: np.ndarray) -> Any:
        @CFUNCTYPE
        def f(t: float, x: Any, out: Any, n: int, user: Any) -> None:
            for i in range(n):
                out[i] = values[i]

        return f

    pointers = (constant(c), constant(d)) if equation == SEPARABLE else constant(c)
    fields = on_tensors, CompiledField(pointers, equation=equation, dim=SIZE)
    for field in fields:
        field.autonomous = True  # so that the steps at the ends are the method's own, too
    return fields


def measure(method: Method, equation: str) -> list[Result]:
    """Both loops, :data:`STEPS` steps of :data:`SIZE` components."""
    c, d = _constants()
    g = np.random.default_rng(8)
    parts = [torch.from_numpy(g.normal(size=SIZE)) for _ in range(2)]
    y0 = parts[0] if equation == FIRST else tuple(parts)
    results = []
    for loop, field in zip(("python", "compiled"), _fields(equation, c, d)):
        with warnings.catch_warnings():  # that increments have few bits is the point here
            warnings.simplefilter("ignore", ResolutionWarning)
            run = integrate(field, y0, scheme=method, h=H, steps=STEPS, state=STATE, scale=1.0, loop=loop)
        wanted = expected(method, equation, [s.tolist() for s in run.start], (c, d))
        wrong = sum(int((found != torch.tensor(w)).sum()) for found, w in zip(run.final, wanted))
        name = "compiled loop" if loop == "compiled" else "tensor loop"
        results.append(
            Result(
                f"{name}: increments rounded to nearest",
                wrong == 0,
                wrong,
                0,
                "numbers that differ",
                f"{2 * SIZE} numbers after {STEPS} steps, in Python's integers",
            )
        )
    return results


MUTANTS: dict[str, tuple[Method, str]] = {
    "coefficients that differ from run to run": (Restless(compositions.get("verlet")), SECOND)
}
