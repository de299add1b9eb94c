"""Gradients through an integration: against stored autograd, bit for bit, and against differences of float64
runs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from revstep.errors import RevstepError
from revstep.ode import FirstOrder, SecondOrder, Separable, compositions, integrate
from revstep.ode._units import make_grid
from revstep.ode.methods import Method, Micro, SplittingMethod
from revstep.state import FixedPoint, Float
from revstep.verify._checks import Result, failed

from .oracle import stored

NAME = "gradients"
STORED, DIFFERENCES = "gradients equal stored autograd", "gradients equal differences of float64 runs"
STEPS, H, T0, DIM = 5, 0.08, 0.3, 3
STATE = FixedPoint(64, 50)
#: Step of the differences, along a direction of length about one. Fourth-order central: truncation ``d**4 /
#: 30 = 5e-13`` times the fifth derivative, rounding ``STEPS eps / d = 1e-12`` times the loss.
DIFFERENCE = 2e-3
#: Those two, with a factor of 500 for the fifth derivative and the loss of these fields.
TOLERANCE = 1e-9


class _Kernel(nn.Module):
    """A non-linear, non-autonomous function with a parameter ``w`` and an argument ``k``."""

    def __init__(self, seed: int, sign: float):
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(
            torch.randn(DIM, DIM, generator=g, dtype=torch.float64) * 0.4
            + 0.8 * torch.eye(DIM, dtype=torch.float64)
        )
        self.sign = sign

    def forward(self, t: Tensor, x: Tensor, k: Tensor) -> Tensor:
        return self.sign * torch.sin(x @ self.w) * k + 0.1 * torch.cos(t)


def problem(equation: str) -> tuple[Any, nn.ModuleList]:
    """A field of the kind with parameters, and its modules."""
    modules = nn.ModuleList(
        [_Kernel(3, 1.0 if equation == "separable" else -1.0)]
        + ([_Kernel(4, -1.0)] if equation == "separable" else [])
    )
    return {"first": FirstOrder, "second": SecondOrder, "separable": Separable}[equation](*modules), modules


def leaves(equation: str) -> list[Tensor]:
    """Start (one or two parts), argument k, then h and t0; fresh leaves."""
    g = torch.Generator().manual_seed(5)
    parts = [
        torch.randn(2, DIM, generator=g, dtype=torch.float64) for _ in range(1 if equation == "first" else 2)
    ]
    scalars = [
        torch.full((DIM,), 0.9, dtype=torch.float64),
        torch.tensor(H, dtype=torch.float64),
        torch.tensor(T0, dtype=torch.float64),
    ]
    return [x.requires_grad_() for x in (*parts, *scalars)]


def start(xs: list[Tensor]) -> Any:
    """The y0 that ``integrate`` takes, from :func:`leaves`."""
    return (xs[0], xs[1]) if len(xs) == 5 else xs[0]


def _loss(outputs: tuple[Tensor, ...]) -> Tensor:
    g = torch.Generator().manual_seed(6)
    return sum(
        ((torch.rand(x.shape, generator=g, dtype=torch.float64) + 0.5) * x + 0.3 * x * x).sum()
        for x in outputs
    )


def _integrated(
    method: Method, equation: str, field: Any, xs: list[Tensor], state: Any, scale: float | None = None
) -> tuple[Tensor, ...]:
    *_, k, h, t0 = xs
    run = integrate(
        field,
        start(xs),
        scheme=method,
        h=h,
        steps=STEPS,
        t0=t0,
        args=(k,),
        state=state,
        scale=scale,
        loop="python",
    )
    return tuple(x[-1] for x in (run.ys, run.second) if x is not None)


def reversible(method: Method, equation: str) -> tuple[Tensor, ...]:
    """Gradients of the reversible integration with respect to :func:`leaves` and the parameters."""
    field, modules = problem(equation)
    xs = leaves(equation)
    return torch.autograd.grad(
        _loss(_integrated(method, equation, field, xs, STATE, 1.0)), [*xs, *modules.parameters()]
    )


def against_stored(method: Method, equation: str, ours: tuple[Tensor, ...]) -> Result:
    """Start, argument, parameters, h and t0 against :func:`stored`.

    The start's gradient must have stored autograd's bits. The others are sums of one term a micro-step (and
    one of the readout), which autograd may add in another order: two orders of n terms differ by at most ``2
    n eps`` times the sum of their magnitudes, taken to be at most 100 times the sum.
    """
    field, modules = problem(equation)
    xs = leaves(equation)
    grid = make_grid(STATE, 1.0, method.begin(equation, start([x.detach() for x in xs]), H), shared=False)
    *_, k, h, t0 = xs
    outputs = stored(field, start(xs), method=method, grid=grid, h=h, steps=STEPS, t0=t0, args=(k,))
    theirs = torch.autograd.grad(_loss(outputs), [*xs, *modules.parameters()])
    names = [
        *(f"y0[{i}]" for i in range(len(xs) - 3)),
        "args",
        "h",
        "t0",
        *(name for name, _ in modules.named_parameters()),
    ]
    errors = {
        n: 0.0 if torch.equal(a, b) else float((a - b).norm() / b.norm().clamp_min(1e-300))
        for n, a, b in zip(names, ours, theirs)
    }
    allowed = 100 * 2 * (len(method.micros(1, equation)) * STEPS + 1) * torch.finfo(torch.float64).eps
    wrong = [n for n, e in errors.items() if not e <= (0.0 if n.startswith("y0") else allowed)]
    rounded = [n for n, e in errors.items() if e and n not in wrong]
    equal = [n for n, e in errors.items() if e == 0.0]
    why = (
        f"{', '.join(wrong)} differ"
        if wrong
        else f"bit for bit: {', '.join(equal)}"
        + (f"; summed in another order: {', '.join(rounded)}" if rounded else "")
    )
    return Result(
        STORED,
        not wrong,
        max(errors.values()),
        0.0 if wrong and wrong[0].startswith("y0") else allowed,
        "relative error",
        why,
    )


def against_differences(method: Method, equation: str, ours: tuple[Tensor, ...]) -> Result:
    """Fixed-point gradients against a fourth-order central difference of float64 runs, in one direction of
    all inputs together.

    ``(8 (L(d) - L(-d)) - (L(2d) - L(-2d))) / 12 d`` against ``sum <g, d>``, over the sum of the terms'
    magnitudes.
    """
    field, modules = problem(equation)
    parameters, xs = list(modules.parameters()), leaves(equation)
    ways = [
        torch.randn(g.shape, generator=torch.Generator().manual_seed(7 + i), dtype=torch.float64)
        for i, g in enumerate(ours)
    ]
    # h counts STEPS times.
    ways = [w / w.norm() / (STEPS if i == len(xs) - 2 else 1) for i, w in enumerate(ways)]
    before = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def loss(factor: float) -> float:
        moved = [x.detach() + factor * DIFFERENCE * w for x, w in zip(xs, ways)]
        for p, b, w in zip(parameters, before, ways[len(xs) :]):
            p.copy_(b + factor * DIFFERENCE * w)
        return float(
            _loss(_integrated(method, equation, field, moved, Float(torch.float64, max_error=float("inf"))))
        )

    numeric = (8 * (loss(1) - loss(-1)) - (loss(2) - loss(-2))) / (12 * DIFFERENCE)
    terms = [float((g * w).sum()) for g, w in zip(ours, ways)]
    error = abs(numeric - sum(terms)) / sum(map(abs, terms))
    return Result(
        DIFFERENCES,
        error <= TOLERANCE,
        error,
        TOLERANCE,
        "relative error",
        f"y0, args, h, t0 and parameters at once, {STEPS} steps",
    )


def measure(method: Method, equation: str) -> list[Result]:
    """Both comparisons, for a method and an equation it serves."""
    try:
        ours = reversible(method, equation)
        return [against_stored(method, equation, ours), against_differences(method, equation, ours)]
    except (RevstepError, RuntimeError) as error:
        return [failed(STORED, "relative error", error), failed(DIFFERENCES, "relative error", error)]


@dataclass(frozen=True)
class _Slopeless(Micro):
    """Forgets that gamma depends on h."""

    def gamma_slope(self, h: float) -> float:
        return 0.0


@dataclass(frozen=True)
class _ForgetsStepSize(SplittingMethod):
    def micros(self, n: int, equation: str) -> tuple[Micro, ...]:
        return tuple(
            _Slopeless(*(getattr(m, f.name) for f in fields(m))) for m in super().micros(n, equation)
        )


class _Detached(SplittingMethod):
    """Its readout cuts the graph of one slot."""

    def read(self, equation: str, n: int, slots: Any, t: Any, h: Any, f: Any) -> tuple[Tensor, ...]:
        return super().read(equation, n, (slots[0], slots[1].detach()), t, h, f)


MUTANTS = {
    "gradient with respect to h without the coefficients' slope": (
        _ForgetsStepSize(compositions.get("verlet")),
        "second",
    ),
    "a readout that cuts the graph": (_Detached(compositions.get("verlet")), "separable"),
}
