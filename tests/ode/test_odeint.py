"""``odeint`` with torchdiffeq's names, measured against torchdiffeq itself: values, gradients, forms of
times and states."""

import math

import odeint_problems as problems
import pytest
import torch
import torchdiffeq
from odeint_problems import NAMES, PROBLEMS, TIMES, apart, both, results

import revstep
from revstep import ode
from revstep.ode import _fixed_grid, tableaus

pytestmark = pytest.mark.filterwarnings("error")
D = torch.float64
BOTH = ode.odeint, torchdiffeq.odeint
EPS = 2.0**-52
#: Both sum the same stages in another order. A gap has at most 4 evaluations of a few roundings, there are
#: at most 70 gaps, and the fields multiply an error by less than 2**10 over the interval.
BOUND = 4 * 8 * 70 * EPS * 2.0**10


# ---- the same numbers as torchdiffeq's
# -------------------------------------------------------------------------


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", NAMES)
def test_published_problems_forward_and_backward(name, problem, times):
    assert apart(*both(PROBLEMS[problem](), TIMES[times], method=name)) <= BOUND


@pytest.mark.parametrize("interp", ["linear", "cubic"])
@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", NAMES)
def test_a_step_size_and_times_between_its_grid_points(name, times, interp):
    options = {"step_size": 0.17, "interp": interp}
    assert apart(*both(problems.Sine(), TIMES[times], method=name, options=options)) <= BOUND


@pytest.mark.parametrize("times", ["rising", "uneven, falling"])
def test_a_grid_of_the_callers(times):
    def halves(f, y, t):
        return torch.cat([torch.stack([t[:-1], (t[:-1] + t[1:]) / 2], 1).reshape(-1), t[-1:]])

    options = {"grid_constructor": halves}
    assert apart(*both(problems.Sine(), TIMES[times], method="rk4", options=options)) <= BOUND


@pytest.mark.parametrize("name, order", NAMES.items())
def test_one_call_per_gap_has_the_order_of_the_method(name, order):
    """y' = y cos(t), which is y = exp(sin t): neither autonomous nor linear with constant coefficients."""
    errors = []
    for n in (20, 40, 80):
        t, y, largest = torch.linspace(0, 2, n + 1, dtype=D), torch.ones(1, dtype=D), 0.0
        for i in range(n):
            y = ode.odeint(lambda t, y: y * torch.cos(t), y, t[i : i + 2], method=name)[-1]
            largest = max(largest, abs(float(y) - math.exp(math.sin(float(t[i + 1])))))
        errors.append(largest)
    assert abs(math.log2(errors[0] / errors[2]) / 2 - order) <= 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("t_dtype", [torch.float16, torch.bfloat16, torch.float32, D], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_of_times_and_states(name, t_dtype, dtype):
    """A step rounds y once here and a few times there; eight steps of a field whose derivative is at most 1,
    over 2 units of time. Thirds of a step are rounded to the dtype of t there, not here."""
    t = (torch.arange(9) / 4).to(t_dtype)  # exact in every dtype
    y0 = torch.tensor([0.5, -1.25], dtype=dtype)
    field = lambda t, y: -y * torch.cos(t).to(y.dtype)  # noqa: E731
    ours, theirs = (solve(field, y0, t, method=name) for solve in BOTH)
    assert ours.dtype == theirs.dtype == dtype
    halves = name in ("euler", "midpoint", "heun2")
    eps = max(torch.finfo(x).eps for x in ((dtype,) if halves else (dtype, t_dtype)))
    assert float((ours.double() - theirs.double()).abs().max()) <= 8 * 8 * eps * 1.25 * math.e**2


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_complex_states(name, dtype):
    H = torch.tensor([[1.0, 0.5j], [-0.5j, 2.0]], dtype=dtype)
    y0 = torch.tensor([1.0, 1.0j], dtype=dtype, requires_grad=True)
    t = torch.linspace(0, 1, 9, dtype=D, requires_grad=True)
    found = []
    for solve in BOTH:
        ys = solve(lambda t, y: -1j * (H @ y) * torch.cos(t), y0, t, method=name)
        g_y, g_t = torch.autograd.grad(ys.abs().square().sum() + ys.imag.sum(), [y0, t])
        found.append([ys.detach(), g_y, g_t])
    assert found[0][0].dtype == dtype and apart(*found) <= 64 * 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("t", [problems.UNEVEN, problems.UNEVEN.flip(0)], ids=["rising", "falling"])
@pytest.mark.parametrize("name", NAMES)
def test_tuple_states(name, t):
    """A matrix, a column and a number, as a continuous normalizing flow has them."""
    A = torch.tensor([[0.1, 0.4], [-0.3, -0.2]], dtype=D, requires_grad=True)
    start = [torch.randn(4, 2, dtype=D), torch.zeros(4, 1, dtype=D), torch.tensor(0.5, dtype=D)]
    start = tuple(x.requires_grad_() for x in start)

    def flow(t, parts):
        z, logp, k = parts
        assert isinstance(parts, tuple) and (z.shape, logp.shape, k.shape) == ((4, 2), (4, 1), ())
        return z @ A.T * torch.cos(t), -torch.trace(A) * torch.ones_like(logp), -k * z.square().mean()

    found = []
    for solve in BOTH:
        times = t.clone().requires_grad_()
        parts = solve(flow, start, times, method=name)
        loss = sum((x * torch.linspace(0.1, 1.0, x.numel(), dtype=D).reshape(x.shape)).sum() for x in parts)
        found.append([*(x.detach() for x in parts), *torch.autograd.grad(loss, [*start, times, A])])
    assert isinstance(parts, tuple) and [x.shape for x in found[0][:3]] == [(6, 4, 2), (6, 4, 1), (6,)]
    assert apart(*found) <= BOUND


@pytest.mark.parametrize("falling", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_perturb_keeps_a_step_on_its_side_of_a_jump(name, falling):
    """y' = 1 before t = 1 and 3 from there on: exact for every method when the ends of a step are asked for
    from inside it."""
    t = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0], dtype=D)
    t = t.flip(0) if falling else t
    seen = {}
    for perturb in (False, True):
        seen[perturb] = [
            solve(
                lambda t, y: torch.where(t < 1, 1.0, 3.0).to(D) * torch.ones_like(y),
                torch.zeros(1, dtype=D),
                t,
                method=name,
                options={"perturb": perturb},
            )
            for solve in BOTH
        ]
        assert apart(seen[perturb][:1], seen[perturb][1:]) <= BOUND
    assert abs(float(seen[True][0][-1]) - (-4.0 if falling else 4.0)) <= 64 * EPS


class Told:
    """y' = -y, and what it is told of each step."""

    def __init__(self, as_tuple):
        self.as_tuple, self.calls = as_tuple, []

    def __call__(self, t, y):
        return tuple(-x for x in y) if self.as_tuple else -y

    def callback_step(self, t0, y0, dt):
        self.calls.append((float(t0), float(y0[0]), float(dt)))


@pytest.mark.parametrize("as_tuple", [False, True])
@pytest.mark.parametrize("falling", [False, True])
def test_callback_step_is_called_before_each_step(as_tuple, falling):
    t = torch.tensor([0.0, 0.25, 0.75], dtype=D)
    t = t.flip(0) if falling else t
    found = []
    for solve in BOTH:
        told = Told(as_tuple)
        y0 = torch.ones(1, dtype=D)
        solve(told, (y0, y0) if as_tuple else y0, t, method="midpoint")
        found.append(told.calls)
    assert found[0] == found[1] and len(found[0]) == 2


def test_second_derivatives_and_vmap_work_since_the_graph_is_stored():
    t = torch.linspace(0, 1, 5, dtype=D)
    y = torch.tensor([0.3, 0.7], dtype=D, requires_grad=True)
    solve = lambda y: ode.odeint(lambda t, y: torch.sin(y), y, t, method="rk4")[-1].sum()  # noqa: E731
    assert torch.autograd.gradgradcheck(solve, y)
    run = lambda y: ode.odeint(lambda t, y: torch.sin(y), y, t, method="rk4")  # noqa: E731
    assert torch.equal(torch.func.vmap(run)(y.detach()[:, None])[:, :, 0].T, run(y.detach()))


# ---- where it is more than torchdiffeq
# --------------------------------------------------------------------------


def test_the_clock_is_float64_whatever_the_dtypes():
    """Unix time: float32 cannot tell one second from the next 127."""
    seen = []
    t = torch.linspace(1.7e9, 1.7e9 + 10, 11, dtype=D)
    for y0 in (
        torch.ones(1),
        torch.ones(1, dtype=torch.bfloat16),
        (torch.ones(1), torch.ones(1, dtype=torch.float16)),
    ):
        seen.clear()

        def f(t, y):
            seen.append(t)
            return y

        ode.odeint(f, y0, t, method="euler")
        assert [(x.dtype, x.shape) for x in seen] == [(D, ())] * 10
        assert [float(x) for x in seen] == t[:-1].tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, D], ids=str)
@pytest.mark.parametrize(
    "span, step, steps",
    [(0.3, 0.1, 3), (1.0, 0.1, 10), (0.7, 0.1, 7), (2.1, 0.3, 7), (1.0, 1 / 3, 3), (0.35, 0.1, 4)],
)
def test_whole_numbers_of_steps_in_any_dtype(span, step, steps, dtype):
    for times in ((0.0, span), (span, 0.0), (-span, 0.0)):
        for size in (step, torch.tensor(step), torch.tensor(step, dtype=D)):
            told = Told(False)
            ode.odeint(
                told,
                torch.ones(1),
                torch.tensor(times, dtype=dtype),
                method="euler",
                options={"step_size": size},
            )
            assert len(told.calls) == steps


def test_a_time_that_a_grid_point_hits_keeps_its_derivative():
    """Binary fractions, so that every time is a grid point to the last bit. dy/dt of y = exp(-t), to the
    linear interpolant's order."""
    t = torch.tensor([0.0, 0.25, 0.5, 1.0], dtype=D, requires_grad=True)
    for interp, bound in (("linear", 1 / 128), ("cubic", 1e-8)):
        y = ode.odeint(
            lambda t, y: -y,
            torch.ones(1, dtype=D),
            t,
            method="rk4",
            options={"step_size": 1 / 64, "interp": interp},
        )[:, 0]
        for i in (1, 2, 3):
            (g,) = torch.autograd.grad(y[i], t, retain_graph=True)
            wanted = torch.zeros(4, dtype=D)
            wanted[0], wanted[i] = float(y[i].detach()), -float(y[i].detach())  # y depends on t - t[0]
            assert float((g - wanted).abs().max()) <= bound


def test_a_step_size_that_is_differentiated():
    size = torch.tensor(0.25, dtype=D, requires_grad=True)
    found = []
    for solve in BOTH:
        y = solve(
            lambda t, y: -y * t,
            torch.ones(1, dtype=D),
            torch.tensor([0.0, 0.9], dtype=D),
            method="euler",
            options={"step_size": size},
        )
        found.append(torch.autograd.grad(y.sum(), size))
    assert apart(*found) <= BOUND and float(found[0][0].abs()) > 1e-3


def test_one_buffer_that_the_field_writes_again_and_again():
    buffer, y0, t = (
        torch.empty(2, dtype=D),
        torch.tensor([0.3, 0.8], dtype=D),
        torch.linspace(0, 1, 5, dtype=D),
    )

    def reused(t, y):
        return torch.sin(y, out=buffer)

    for name in NAMES:
        right = ode.odeint(lambda t, y: torch.sin(y), y0, t, method=name)
        assert torch.equal(ode.odeint(reused, y0, t, method=name), right)


def test_half_precision_takes_small_steps():
    """1e-8 is 0 in float16, a step of a field of 1e5 is not: the sizes of the steps are not rounded to the
    state's dtype."""
    t = torch.tensor([0.0, 1e-8, 2e-8], dtype=D)
    y = ode.odeint(lambda t, y: torch.full_like(y, 5e4), torch.zeros(1, dtype=torch.float16), t, method="rk4")
    assert y[:, 0].tolist() == pytest.approx([0.0, 5e-4, 1e-3], rel=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_one_time_is_the_start(name):
    found = ode.odeint(lambda t, y: y, torch.ones(2), torch.tensor([0.5]), method=name)
    assert found.tolist() == [[1.0, 1.0]]


def test_options_of_revsteps_methods_are_said_to_mean_nothing():
    with pytest.warns(UserWarning, match=r"'start', 'loop' means nothing to 'midpoint'.*not used"):
        ode.odeint(
            lambda t, y: -y,
            torch.ones(1),
            torch.tensor([0.0, 1.0]),
            method="midpoint",
            options={"start": "repeat", "loop": "python"},
        )


# ---- the comparisons reject what is wrong
# -----------------------------------------------------------------------


def _tableau(name, table):
    return lambda m: m.setitem(_fixed_grid.TABLEAUS, name, table)


def _clock(time):
    return lambda m: m.setattr(_fixed_grid._Walk, "_time", lambda self, t0, t1, dt, c: time(t0, t0 + c * dt))


def _between(curve):
    return lambda m: m.setattr(_fixed_grid._Inside, "_linear", staticmethod(curve))


def _straight(x, h, a, p, b, q):
    return a + x * (b - a)


def _one_more(times, step_size):
    return 1 + math.ceil(abs(times.span) / step_size)


LINEAR, CUBIC = {"step_size": 0.17}, {"step_size": 0.17, "interp": "cubic"}
MUTANTS = {
    "the classical rk4": (_tableau("rk4", tableaus.RK4), "rk4", {}),
    "midpoint is heun2": (_tableau("midpoint", tableaus.HEUN2), "midpoint", {}),
    "heun2 is Ralston's": (_tableau("heun2", tableaus.RALSTON2), "heun2", {}),
    "heun3 is Bogacki's": (_tableau("heun3", tableaus.BOSH3), "heun3", {}),
    "every stage at the start of the step": (_clock(lambda t0, t: t0), "rk4", {}),
    "the clock in float32": (_clock(lambda t0, t: t.float()), "rk4", {}),
    "times without a graph": (_clock(lambda t0, t: t.detach()), "rk4", {}),
    "smooth where linear is asked for": (
        _between(lambda x, a, b: a + x**2 * (3 - 2 * x) * (b - a)),
        "rk4",
        LINEAR,
    ),
    "linear where cubic is asked for": (lambda m: m.setattr(_fixed_grid, "hermite", _straight), "rk4", CUBIC),
    "one step more": (lambda m: m.setattr(_fixed_grid, "count_steps", _one_more), "rk4", LINEAR),
}


@pytest.mark.parametrize("change, name, options", MUTANTS.values(), ids=MUTANTS)
def test_the_comparison_sees(monkeypatch, change, name, options):
    field, t = problems.Sine(), TIMES["uneven"]
    theirs = results(torchdiffeq.odeint, field, t, method=name, options=options)
    assert apart(results(ode.odeint, field, t, method=name, options=options), theirs) <= BOUND
    change(monkeypatch)
    try:
        seen = apart(results(ode.odeint, field, t, method=name, options=options), theirs)
    except (
        RuntimeError,
        revstep.ConfigError,
    ):  # no graph to the times, or a grid that runs backwards at its end
        return
    assert not seen <= BOUND


def test_the_published_solutions_are_solutions():
    """So that the problems are what their formulas say: the residual of each, by autograd."""
    for kind in PROBLEMS.values():
        field, t = kind(), problems.UNEVEN.clone().requires_grad_()
        if kind is problems.Linear:
            continue  # an exponential
        y = field.solution(t)[:, 0]
        (slope,) = torch.autograd.grad(y.sum(), t)
        assert float((slope - field(t, y)).detach().abs().max()) <= 64 * EPS * float(slope.abs().max())


def test_a_step_size_in_float32_is_the_decimal_number_too():
    told = Told(False)
    seven_tenths = torch.tensor(0.7)  # float32's is a little less, so that 2.1 is a little more than three
    times = torch.tensor([0.0, 2.1], dtype=D)
    ode.odeint(told, torch.ones(1), times, method="euler", options={"step_size": seven_tenths})
    assert len(told.calls) == 3


def test_a_field_may_change_the_time_it_is_given():
    t, y0 = torch.linspace(0, 1, 5, dtype=D), torch.ones(1, dtype=D)
    right = ode.odeint(lambda t, y: -y * (t + 1), y0, t, method="rk4")
    assert torch.equal(ode.odeint(lambda t, y: -y * t.add_(1), y0, t, method="rk4"), right)
    assert torch.equal(t, torch.linspace(0, 1, 5, dtype=D))


def test_a_number_is_the_value_of_every_component():
    y0, driven = torch.ones(3, dtype=D), lambda t, y: torch.cos(t)
    found = [solve(driven, y0, problems.UNEVEN, method="rk4") for solve in BOTH]
    assert apart(found[:1], found[1:]) <= BOUND
