"""Order of convergence: the slope of the error per halving of the step, on four classes of problem with known
solutions.

Many step sizes and all four problems run as one batch. A run with step r H is a run with step H of the
problem with time in units of r: y' = r f(r t, y), so a batch of ratios r is a batch of step sizes. H is not
1, so that a wrong power of h in a method is seen.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from revstep.errors import ParasiticModeError, StateOverflowError
from revstep.ode import integrate
from revstep.ode._equations import FIRST, SECOND, SEPARABLE, FirstOrder, SecondOrder, Separable
from revstep.ode.methods import Method, ReversibleRK, TwoStep
from revstep.schemes import Claims, MidpointBlend
from revstep.verify._checks import Result

from .oracle import altered, retimed, scaled
from .problems import CLASSES, PROBLEMS, OdeProblem

NAME = "order"
TOLERANCE = 0.15
HALVINGS = 3
#: The error is taken at half time and at the end, so that a zero of the error curve cannot pass for a slope.
#: Numbers of steps are therefore even.
TIMES = 2
#: Step of the batch (see above).
H = 1 / 16
#: Most evaluations of the finest run, by claimed order: what a case may cost. Twice as many for reversible
#: Runge-Kutta, whose coupling takes steps to settle.
BUDGET = {1: 768, 2: 768, 3: 768, 4: 1536, 6: 2048}
BUDGET_HIGH = 6144
EPS = 2.0**-52


@dataclass(frozen=True)
class Convergence:
    """Errors of one method on one problem over at least :data:`HALVINGS` halvings of h, for tables and plots.

    Attributes:
        h, errors: coarse to fine.
        floor: rounding level, see :func:`floor`.
        power: of h in the first correction to the leading term, see :func:`power`.
    """

    problem: str
    h: tuple[float, ...]
    errors: tuple[float, ...]
    floor: float
    power: int

    @property
    def slope(self) -> float:
        """The slope of log2(error) over log2(h) as h -> 0: p of the least-squares fit ``log2 error = a + p
        log2 h + c h**k + d h**(2 k)``, k = ``power``.

        c and d are the first corrections to ``C h**p``. Without them the double precision left above the
        rounding floor would not do at order 8, where three halvings are a factor of 2**24: their coarse end
        is far from the limit (plain slopes of 7.3 to 8.5, all of which the fit brings to 8).
        """
        h = np.array(self.h)
        corrections = [(h / h.max()) ** self.power, (h / h.max()) ** (2 * self.power)] if len(h) > 6 else []
        basis = np.stack([np.ones_like(h), np.log2(h), *corrections], axis=1)
        errors = np.clip(self.errors, 1e-300, 1e300)
        # Weights: the inverse deviation of log2(error), from rounding (half as much again as :func:`floor`
        # takes for one deviation) and, 1%, from the corrections left out.
        weight = 1 / np.hypot(self.floor / (8 * errors), 0.01)
        return float(np.linalg.lstsq(basis * weight[:, None], np.log2(errors) * weight, rcond=None)[0][1])

    @property
    def last(self) -> float:
        """The plain slope between the finest step and twice that step."""
        coarse = self.errors[int(np.argmin(np.abs(np.array(self.h) - 2 * self.h[-1])))]
        return float(np.log2(coarse / self.errors[-1])) if 0 < self.errors[-1] < math.inf else math.nan


def floor(method: Method, problem: OdeProblem) -> float:
    """Where rounding would bend the slope, for runs of some 30 steps and more.

    A run applies increments gamma Phi, with the sum of |gamma| over a step S h. Each Phi comes with a
    relative rounding of some 2 eps, so the n m updates of n steps of m micro-steps add up to about 2 eps S T
    |Phi| / sqrt(n m), the roundings being independent; the grid adds eps/8 an update, and reading out and the
    reference 2 eps |y|. Twelve times that changes log2 of the error at one end of the fit by 0.12, and the
    slope of four points by 0.04.
    """
    micros = method.micros(1, problem.equation)
    weight = max(1.0, sum(abs(m.gamma_coef) for m in micros))
    updates = 32 * len(micros)
    return (
        12 * EPS * problem.size * (2 * weight * problem.end / math.sqrt(updates) + math.sqrt(updates) / 8 + 2)
    )


#: The order is the method's own, wherever it looks: nothing is extrapolated at the ends of a run.
ANYTIME = (-math.inf, math.inf)


class _Batch:
    """All problems of an equation for several numbers of steps: states (counts, all components)."""

    def __init__(self, equation: str, problems: list[OdeProblem], counts: list[int]):
        self.equation, self.problems, self.counts = equation, problems, counts
        sizes = [len(p.start[0]) for p in problems]
        self.columns = [slice(sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes))]
        self.ratios = torch.tensor([[p.end / n / H for p in problems] for n in counts], dtype=torch.float64)

    def _function(self, index: int, power: int):
        ratios = [self.ratios[:, k : k + 1] for k in range(len(self.problems))]
        known = [
            (p.functions[index], r, r**power, columns)
            for p, r, columns in zip(self.problems, ratios, self.columns, strict=True)
        ]

        def f(t: Tensor, x: Tensor) -> Tensor:
            return torch.cat(
                [factor * function(r * t, x[:, columns]) for function, r, factor, columns in known], dim=1
            )

        return f

    def errors(self, method: Method) -> np.ndarray:
        """(problems, counts); inf where the run leaves the range of the state."""
        field, power = (
            {
                FIRST: lambda: FirstOrder(self._function(0, 1), interval=ANYTIME),
                SECOND: lambda: SecondOrder(self._function(0, 2), interval=ANYTIME),
                SEPARABLE: lambda: Separable(self._function(0, 1), self._function(1, 1), interval=ANYTIME),
            }[self.equation](),
            1 if self.equation == SECOND else 0,
        )
        scales = torch.cat(
            [
                (self.ratios[:, k : k + 1] ** power).expand(-1, c.stop - c.start)
                for k, c in enumerate(self.columns)
            ],
            dim=1,
        )
        starts = [
            torch.tensor([x for p in self.problems for x in p.start[part]], dtype=torch.float64)
            for part in range(len(self.problems[0].start))
        ]
        parts = [
            start.expand(len(self.counts), -1) * (scales if part else 1.0)
            for part, start in enumerate(starts)
        ]
        try:
            found = integrate(
                field,
                parts[0] if self.equation == FIRST else tuple(parts),
                scheme=method,
                h=H,
                steps=max(self.counts),
                save_every=1,
            )
        except (StateOverflowError, ParasiticModeError):
            return self._one_by_one(method)
        values = [found.ys] if found.second is None else [found.ys, found.second / scales]
        return np.array(
            [
                [self._error(values, k, row) for row in range(len(self.counts))]
                for k in range(len(self.problems))
            ]
        )

    def _one_by_one(self, method: Method) -> np.ndarray:
        """One run left the range of the state, which ends the batch: smaller batches find out which."""
        if len(self.problems) > 1:
            return np.concatenate(
                [_Batch(self.equation, [p], self.counts).errors(method) for p in self.problems]
            )
        if len(self.counts) > 1:
            return np.concatenate(
                [_Batch(self.equation, self.problems, [n]).errors(method) for n in self.counts], axis=1
            )
        return np.full((1, 1), math.inf)

    def _error(self, values: list[Tensor], k: int, row: int) -> float:
        """Root mean square over the times of the 2-norm of the error."""
        at = [self.counts[row] * (j + 1) // TIMES for j in range(TIMES)]
        y = np.concatenate([v[at, row, self.columns[k]].numpy() for v in values], axis=-1)
        return float(np.sqrt(np.mean(np.sum((y - self.problems[k].exact(TIMES)) ** 2, axis=-1))))


@functools.cache  # the page draws what was measured
def convergence(method: Method, equation: str, order: int, power: int) -> dict[str, Convergence]:
    """Class of problem -> errors over :data:`HALVINGS` halvings, the finest step being the smallest above the
    floor (or the budget allows).
    """
    cost = sum(len(method.tableau.b) if m.rk_sign else 1 for m in method.micros(1, equation))
    budget = BUDGET.get(order, BUDGET_HIGH) * (2 if method.tableau and order in BUDGET else 1)
    open_, errors = dict(PROBLEMS[equation]), {name: {} for name in CLASSES}
    for octave in itertools.count(2):
        counts = [n for n in (m << octave >> 2 for m in (4, 5, 6, 7)) if n % TIMES == 0]
        if not open_ or (octave > 2 + HALVINGS and counts[-1] * cost > budget):
            break
        found = _Batch(equation, list(open_.values()), counts).errors(method)
        for (name, p), row in zip(list(open_.items()), found, strict=True):
            errors[name] |= dict(zip(counts, row.tolist(), strict=True))
            # The next step would be below.
            if octave > 2 + HALVINGS - 1 and row[-1] * (7 / 8) ** order < floor(method, p):
                del open_[name]
    return {
        name: _window(PROBLEMS[equation][name], errors[name], floor(method, PROBLEMS[equation][name]), power)
        for name in CLASSES
    }


def _window(problem: OdeProblem, errors: dict[int, float], bottom: float, power: int) -> Convergence:
    """The halvings that end at the finest step whose error is above the floor."""
    finest = max(
        (n for n in errors if errors[n] >= bottom and n / (1 << HALVINGS) in errors), default=max(errors)
    )
    counts = [n for n in errors if finest >= n >= finest / (1 << HALVINGS)]
    return Convergence(
        problem.name,
        tuple(problem.end / n for n in counts),
        tuple(float(errors[n]) for n in counts),
        float(bottom),
        power,
    )


def power(claims: Claims) -> int:
    """Of h in the first correction to the leading term of the error: 2 where only even powers of h follow
    it, else 1.
    """
    return 2 if claims.symmetric or claims.even else 1


def asymptotic(method: Method) -> tuple[Method, str]:
    """The method at options where its order shows at affordable steps, and a remark where those are not its
    defaults.
    """
    if isinstance(method, ReversibleRK) and method.lam > LAM:
        return (
            dataclasses.replace(method, lam=LAM),
            (
                f"at lam = {LAM}: near lam = {method.lam:.4g} the two copies decouple only after 1/(1 - lam)"
                " steps, and bases of odd order then converge faster than claimed"
            ),
        )
    return method, ""


#: Coupling of the reversible Runge-Kutta methods at which order is measured.
LAM = 0.5


def measure(method: Method, equation: str) -> list[Result]:
    claims = method.claims(equation)
    if claims.in_expectation:
        return [
            _in_expectation(
                method, PROBLEMS[equation][name], f"order {claims.order} in expectation, {name}", claims.order
            )
            for name in CLASSES
        ]
    measured, remark = asymptotic(method)
    found = convergence(measured, equation, claims.order, power(claims))
    return [judged(f"order {claims.order}, {name}", run, claims.order, remark) for name, run in found.items()]


def judged(claim: str, run: Convergence, order: int, remark: str = "") -> Result:
    halvings = math.log2(run.h[0] / run.h[-1])
    what = (
        f"slope {run.slope:.2f} on {run.problem}, errors {run.errors[0]:.1e} to {run.errors[-1]:.1e} over"
        f" {halvings:.1f} halvings, the last {run.last:.2f}"
    )
    off = abs(run.slope - order) if np.isfinite(run.errors).all() else math.inf
    if min(run.errors) < run.floor:
        off = math.inf
        what += f"; the finest is below the rounding floor {run.floor:.1e}: the slope says nothing"
    return Result(
        claim,
        bool(off <= TOLERANCE),
        off,
        TOLERANCE,
        "off the claimed slope",
        f"{what}; {remark}" if remark else what,
    )


def _in_expectation(method: Method, problem: OdeProblem, claim: str, order: int) -> Result:
    """The mean over all equally likely paths a_j = +-3/4 of a random blend, exactly averaged; a short time,
    as the paths double with each step.
    """
    if not isinstance(method, TwoStep) or not isinstance(method.scheme, MidpointBlend):
        return Result(
            claim,
            False,
            math.inf,
            TOLERANCE,
            "off the claimed slope",
            f"{method.name} holds its order in expectation: say here over which draws",
        )
    short = dataclasses.replace(problem, end=problem.end / 64)
    counts, errors = (1, 2, 4, 8), []
    for n in counts:
        # Step 0 is the one-step start, which has no a.
        paths = (
            [(1.0, *signs) for signs in itertools.product((0.75, -0.75), repeat=n - 1)] if n > 1 else [1.0]
        )
        ends = [
            _end(dataclasses.replace(method, scheme=dataclasses.replace(method.scheme, a=path)), short, n)
            for path in paths
        ]
        errors.append(float(np.linalg.norm(np.mean(ends, axis=0) - short.exact()[-1])))
    return judged(
        claim,
        Convergence(
            problem.name, tuple(short.end / n for n in counts), tuple(errors), floor(method, short), 1
        ),
        order,
        "mean over all paths",
    )


def _end(method: Method, problem: OdeProblem, n: int) -> np.ndarray:
    return integrate(problem.field(), problem.y0(), scheme=method, h=problem.end / n, steps=n).ys[-1].numpy()


MUTANTS = {
    "midpoint with an increment 1% too large": (altered("midpoint", scaled(1.01)), "first"),
    "leapfrog that claims order 4": (altered("leapfrog", scaled(1.0), order=4), "second"),
    "yoshida4 with one coefficient 1e-3 off": (altered("yoshida4", scaled(1.001, 2)), "separable"),
    "verlet whose functions all see the start of the step": (altered("verlet", retimed(0.0)), "separable"),
    "leapfrog with h in the place of h**2": (
        altered("leapfrog", lambda micros: tuple(dataclasses.replace(m, gamma_power=1) for m in micros)),
        "second",
    ),
    "reversible rk4 with its second half forgotten": (altered("reversible_rk4", scaled(0.0, 0)), "first"),
    "kahan_li8 with an order too many claimed": (altered("kahan_li8", scaled(1.0), order=10), "separable"),
}
