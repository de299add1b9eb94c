"""Public problems, each through every method that claims its equation: the error falls with the method's
order, and the way back is exact.

What this would catch: a wrong coefficient or a wrong clock lowers the slope for good; a second solution
that grows (two copies that stray, the mode of a two-step method) makes the error grow with the number of
steps or leaves it where it is; a unit too coarse for a start of zero, or for metres and seconds, puts a
floor under it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from public_first_order import FIRST_ORDER
from public_mechanics import MECHANICS
from public_problems import PublicProblem, by_dop853, exact

from revstep import ode
from revstep.errors import ParasiticModeError, StateOverflowError
from revstep.ode._functions import CFUNCTYPE
from revstep.ode.methods import Method, ReversibleRK, SplittingMethod
from revstep_lab.verify.ode.oracle import altered, retimed, scaled

PROBLEMS = {p.name: p for p in (*FIRST_ORDER, *MECHANICS)}
#: Off the claimed order, in the slope of one halving. A method that does better than it claims is not at
#: fault here.
SLOPE = 0.25
#: Below this share of the solution the error is not the method's any more: references are good to 2e-12,
#: and roundings are multiplied by the flow.
FLOOR = 2e-11
#: Steps by order, as a multiple of the problem's own number, which is for order 4.
STEPS = {1: 8, 2: 4, 3: 2, 4: 1, 5: 1, 6: 1, 8: 0.5}
#: Steps are doubled at most so often: a slope that has not come by then is not the method's.
DOUBLINGS = 6
#: Error by order with which a slope counts: it is no slope where the run has not found the solution yet.
ERROR = {1: 0.1, 2: 1e-2, 3: 1e-2, 4: 1e-3, 5: 1e-3, 6: 1e-3, 8: 1e-3}


def compiled(problem: PublicProblem) -> ode.CompiledField:
    """The problem's functions behind C pointers, for the loop in C++: some thirty times faster than through
    tensors.
    """

    def pointer(f):
        def call(t, x, out, n, user):
            try:
                values = f(t, x[:n])
            except ArithmeticError:  # Python's floats raise where C's become infinite
                values = [math.nan] * n
            for i, value in enumerate(values):
                out[i] = value

        return CFUNCTYPE(call)

    pointers = tuple(pointer(f) for f in problem.functions)
    given = pointers if len(pointers) == 2 else pointers[0]
    return ode.CompiledField(given, equation=problem.equation, dim=len(problem.start[0]))


def run(problem: PublicProblem, field, method: Method, steps: int) -> ode.Solution:
    h = (problem.end - problem.begin) / steps
    return ode.integrate(field, problem.parts(), scheme=method, h=h, steps=steps, t0=problem.begin)


def error(problem: PublicProblem, found: ode.Solution) -> float:
    """The largest error of a component at the end, each part of a pair in units of its own largest value at
    either end.
    """
    parts = [p for p in (found.ys, found.velocities, found.momenta) if p is not None]
    truth = np.split(exact(problem), len(parts))
    sizes = [max(np.abs(x).max(), np.abs(y[0]).max()) for y, x in zip(parts, truth)]
    return max(float(np.abs(y[-1] - x).max() / size) for y, x, size in zip(parts, truth, sizes))


def tried(problem: PublicProblem, field, method: Method, steps: int) -> tuple[float, ode.Solution | None]:
    try:
        found = run(problem, field, method, steps)
    except StateOverflowError:  # too large a step for this method: the next has half of it
        return math.inf, None
    return error(problem, found), found


def converges(problem: PublicProblem, field, method: Method) -> tuple[str | None, ode.Solution | None]:
    """``(what is wrong or None, the last run but one)``: steps are doubled until the error falls as
    claimed, or is at the floor.
    """
    order = method.claims(problem.equation).order
    if method.claims(problem.equation).in_expectation:
        return in_expectation(problem, field, method)
    steps = max(2, int(problem.steps * STEPS[order]))
    before, found = tried(problem, field, method, steps)
    said = [f"{steps}: {before:.1e}"]
    for _ in range(DOUBLINGS):
        steps *= 2
        now, finer = tried(problem, field, method, steps)
        said.append(f"{steps}: {now:.1e}")
        slope = math.log2(before / now) if 0 < now < math.inf and 0 < before < math.inf else 0.0
        if now <= FLOOR or (slope >= order - SLOPE and now <= ERROR[order]):
            return None, finer
        before, found = now, finer
    return f"{method.name} (order {order}): error by steps {', '.join(said)}", found


def in_expectation(problem: PublicProblem, field, method: Method) -> tuple[str | None, ode.Solution | None]:
    """Random coefficients have their order on average: the mean of all equally likely paths is held to it,
    over a short time and few steps.
    """
    short = dataclasses.replace(problem, end=problem.begin + (problem.end - problem.begin) / 256)
    off = []
    for steps in (4, 8):
        # Step 0 is the start, which has no a.
        paths = [(1.0, *signs) for signs in itertools.product((0.75, -0.75), repeat=steps - 1)]
        schemes = [dataclasses.replace(method.scheme, a=path) for path in paths]
        drawn = [dataclasses.replace(method, scheme=scheme) for scheme in schemes]
        found = [run(short, field, one, steps) for one in drawn]
        mean = dataclasses.replace(found[0], ys=np.mean([f.ys for f in found], axis=0))
        off.append(error(short, mean))
    good = off[1] <= FLOOR or (math.log2(off[0] / off[1]) >= 1 - SLOPE and off[1] <= 2 * ERROR[1])
    said = f"{method.name}: mean of the paths off by {off[0]:.1e} with 4 steps, {off[1]:.1e} with 8"
    return (None if good else said), found[0]


def methods_for(problem: PublicProblem) -> list[Method]:
    """Every method that claims the equation; but see :attr:`PublicProblem.long`."""
    left_out = ("midpoint", "midpoint_blend") if problem.long else ()
    known = {name: m for name, m in ode.available().items() if name not in left_out}
    return [m for m in known.values() if problem.equation in m.equations]


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_method_solves_it(name):
    problem = PROBLEMS[name]
    field, wrong = compiled(problem), []
    for method in methods_for(problem):
        said, found = converges(problem, field, method)
        if said is not None:
            wrong.append(said)
        elif not found.reverse().exact:
            wrong.append(f"{method.name}: the way back is not exact")
    assert not wrong, "\n".join(wrong)


def test_there_are_sixty():
    assert len(PROBLEMS) == len(FIRST_ORDER) + len(MECHANICS) >= 60


@pytest.mark.parametrize("name", [name for name, p in PROBLEMS.items() if p.closed])
def test_closed_forms_are_those_of_dop853(name):
    """A wrong formula here would fail every method; a formula that is wrong together with its field would
    fail none.
    """
    problem = PROBLEMS[name]
    parts = 1 if problem.equation == "first" else 2
    pairs = zip(np.split(by_dop853(problem), parts), np.split(exact(problem), parts), problem.start)
    for found, expected, start in pairs:
        assert np.abs(found - expected).max() <= 1e-11 * max(np.abs(expected).max(), np.abs(start).max())


LOOPS = {"first": "kahan_li6", "second": "blanes_moan4", "separable": "yoshida6"}


@pytest.mark.parametrize("name", PROBLEMS)
def test_both_loops_have_the_same_bits(name):
    """A NumPy function through tensors and the same function behind a pointer, eight steps and back."""
    problem, scheme = PROBLEMS[name], LOOPS[PROBLEMS[name].equation]
    on_arrays = tuple(lambda t, x, f=f: np.array(f(t, x.tolist())) for f in problem.functions)
    wrap = {"first": ode.FirstOrder, "second": ode.SecondOrder, "separable": ode.Separable}[problem.equation]
    method, steps = ode.available()[scheme], 4 * problem.steps
    h = (problem.end - problem.begin) / steps
    options = {"scheme": method, "h": h, "steps": 8, "t0": problem.begin}
    runs = [ode.integrate(f, problem.parts(), **options) for f in (wrap(*on_arrays), compiled(problem))]
    assert [r.stats.loop for r in runs] == ["python", "compiled"]
    assert all((a == b).all() for a, b in zip(runs[0].final, runs[1].final))
    assert runs[0].reverse().exact


@pytest.mark.parametrize(
    "name",
    [
        "logistic_detest_A4",
        "oscillator_damped_1",
        "pendulum_libration",
        "kepler_e0.5",
        "exponential_energies",
    ],
)
def test_float32_starts(name):
    """Fields evaluated in float32: the error is that of their rounding, and the way back is exact."""
    problem = PROBLEMS[name]
    single = np.float32
    on_arrays = tuple(lambda t, x, f=f: np.array(f(t, x.tolist()), dtype=single) for f in problem.functions)
    wrap = {"first": ode.FirstOrder, "second": ode.SecondOrder, "separable": ode.Separable}[problem.equation]
    parts = tuple(np.array(x, dtype=single) for x in problem.start)
    start = parts[0] if problem.equation == "first" else parts
    h = (problem.end - problem.begin) / (2 * problem.steps)
    found = ode.integrate(wrap(*on_arrays), start, scheme="blanes_moan4", h=h, steps=2 * problem.steps)
    assert found.ys.dtype == np.float32 and error(problem, found) < 1e-5 and found.reverse().exact


#: what -> (problem, method): each must be refused.
MUTANTS = {
    "a coefficient 1e-3 off": ("pendulum_libration", altered("yoshida4", scaled(1.001, 2))),
    "functions that see the start of the step": (
        "oscillator_driven_from_rest",
        altered("verlet", retimed(0.0)),
    ),
    "functions that see the end of the step": (
        "prothero_robinson_mild",
        altered("reversible_rk4", retimed(1.0)),
    ),
    "an increment 1% too large": ("exponential_growth", altered("midpoint", scaled(1.01))),
    "copies left alone where the flow contracts": (
        "lorenz_short_long",
        SplittingMethod(ode.available()["kahan_li8"].data, couple=0.0),
    ),
    "copies left alone on a limit cycle": (
        "van_der_pol_detest_E2_long",
        SplittingMethod(ode.available()["yoshida4"].data, couple=0.0),
    ),
    "copies that are drawn together by too little": (
        "fitzhugh_nagumo_long",
        ReversibleRK("dopri5", lam=0.999),
    ),
    "the two-step rule where its second solution grows": (
        "pendulum_driven_damped_long",
        ode.available()["midpoint"],
    ),
    "copies that are not coupled": ("lorenz_short", ReversibleRK("euler", lam=1.0)),
    "one copy drawn to the other, not both": (
        "van_der_pol_detest_E2",
        altered("kahan_li6", lambda micros: micros[1:-1]),
    ),
}


@pytest.mark.parametrize("what", MUTANTS)
def test_mutants_are_refused(what):
    name, method = MUTANTS[what]
    problem = PROBLEMS[name]
    try:
        said, _ = converges(problem, compiled(problem), method)
    except ParasiticModeError as error:  # the run itself says so
        said = str(error)
    assert said is not None
