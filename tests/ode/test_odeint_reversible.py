"""``odeint`` with revstep's own methods: names, tuple states, counts of steps, gradients with respect to
every time."""

import importlib
import math

import numpy as np
import ode_cases as cases
import pytest
import torch

import revstep
from revstep import ode
from revstep.ode import methods

OURS = importlib.import_module("revstep.ode._odeint")  # the file, not the function
READER = importlib.import_module("revstep.ode._reader").Reader
pytestmark = pytest.mark.filterwarnings("error")
D = torch.float64
FIRST_ORDER = sorted(name for name, m in ode.available().items() if "first" in m.equations)
FIRST_ORDER.remove("midpoint")  # which is torchdiffeq's here


def decay(t, y):
    return -y


# ---- names
# ----------------------------------------------------------------------------------------------------


def test_shapes_and_values():
    t, y = torch.linspace(0.0, 1.0, 11, dtype=D), cases.tensors(1)[0]
    found = ode.odeint(decay, y, t, method="reversible_rk4")
    assert found.shape == (11, 4, 3) and torch.allclose(found, y * torch.exp(-t)[:, None, None], atol=1e-6)
    uneven = torch.tensor([0.0, 0.13, 0.5, 1.0], dtype=D)
    found = ode.odeint(decay, y, uneven, method="yoshida4", options={"step_size": 0.01})
    assert torch.allclose(found, y * torch.exp(-uneven)[:, None, None], atol=1e-4)
    q, v = ode.odeint(ode.SecondOrder(decay), (y, torch.zeros_like(y)), t, method="verlet")
    assert torch.allclose(q, y * torch.cos(t)[:, None, None], atol=5e-3) and v.shape == q.shape
    q, p = ode.odeint((lambda t, p: p, lambda t, q: -q), (y, torch.zeros_like(y)), t)
    assert torch.allclose(p, -y * torch.sin(t)[:, None, None], atol=1e-9)
    back = ode.odeint(decay, y, t.flip(0), method="reversible_rk4")
    assert torch.allclose(back[-1], y * math.e, atol=1e-5)
    assert isinstance(ode.odeint(decay, np.ones(2), t.numpy()), np.ndarray)


@pytest.mark.parametrize("equation", ["first", "second", "separable"])
def test_the_default_is_the_one_for_the_equation(equation):
    field, y0 = cases.problem(equation, cases.tensors())
    t = torch.linspace(0, 1, 5, dtype=D)
    found, named = (ode.odeint(field, y0, t, method=m) for m in (None, methods.default(equation)))
    pairs = zip(found, named) if isinstance(found, tuple) else [(found, named)]
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_two_step_rule_has_a_name_of_its_own():
    t, y0 = torch.linspace(0, 1, 9, dtype=D), torch.ones(1, dtype=D)
    ours = ode.odeint(decay, y0, t, method="two_step_midpoint")
    by_hand = ode.integrate(decay, y0, scheme="two_step_midpoint", h=1 / 16, steps=16, save_every=2).ys
    assert torch.equal(ours, by_hand)
    other_name = ode.integrate(decay, y0, scheme="midpoint", h=1 / 16, steps=16, save_every=2).ys
    assert torch.equal(by_hand, other_name)
    assert torch.equal(ours, ode.odeint(decay, y0, t, method=revstep.Midpoint()))
    theirs = ode.odeint(decay, y0, t, method="midpoint")
    assert torch.allclose(ours[1], theirs[1], atol=1e-15, rtol=0)  # two steps are one of RK2's
    assert float((ours[-1] - theirs[-1]).abs()) > 1e-5


def per_gap(name, n, steps=None):
    """The largest error of y' = y cos(t) when every gap is a call of its own."""
    t, y, largest = torch.linspace(0, 1, n + 1, dtype=D), torch.ones(1, dtype=D), 0.0
    for i in range(n):
        options = steps and {"step_size": 1 / (steps * n)}
        y = ode.odeint(lambda t, y: y * torch.cos(t), y, t[i : i + 2], method=name, options=options)[-1]
        largest = max(largest, abs(float(y) - math.exp(math.sin(float(t[i + 1])))))
    return largest


@pytest.mark.parametrize("name", ["two_step_midpoint", *FIRST_ORDER])
def test_one_call_per_gap_has_the_order_of_the_method(name):
    order = methods.resolve(name, 1.0).claims("first").order
    coarse, fine = (4, 8) if order > 4 else (16, 64)
    errors = per_gap(name, coarse), per_gap(name, fine)
    slope = math.log2(errors[0] / errors[1]) / math.log2(fine / coarse)
    assert slope >= order - 0.35 or errors[1] < 1e-12


def test_an_odd_number_of_steps_is_made_even_for_the_two_step_rule():
    errors = per_gap("two_step_midpoint", 16, 3), per_gap("two_step_midpoint", 64, 3)
    assert math.log2(errors[0] / errors[1]) / 2 > 1.8


def test_the_order_of_one_call_per_gap_is_seen_to_fail(monkeypatch):
    monkeypatch.setattr(OURS, "_starts_lower", lambda method, equation, start: False)
    assert math.log2(per_gap("two_step_midpoint", 16) / per_gap("two_step_midpoint", 64)) / 2 < 1.2


# ---- times
# ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["two_step_midpoint", "kahan_li6", "reversible_rk4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_times_of_any_dtype_cost_what_float64_ones_cost(name, dtype):
    """Times that float32 rounds are grid points all the same: neither a step more, nor a value between
    them."""
    counts, ends = [], []
    for t_dtype in (D, dtype):
        for times, options in (
            (torch.linspace(0, 1, 11, dtype=D), None),
            (torch.tensor([0.0, 0.3], dtype=D), {"step_size": 0.1}),
            (torch.tensor([2.1, 0.0], dtype=D), {"step_size": np.float32(0.3)}),
        ):
            calls = []

            def f(t, y, calls=calls):
                calls.append(float(t))
                return -y

            # Half precision moves the times of a finer t by a tenth of a gap.
            times = times if dtype == torch.float32 or options else times[[0, -1]]
            y0 = torch.ones(1, dtype=D)
            ends.append(ode.odeint(f, y0, times.to(t_dtype), method=name, options=options)[-1])
            counts.append(len(calls))
    assert counts[:3] == counts[3:]
    for a, b in zip(ends[:3], ends[3:]):
        assert float((a - b).abs()) <= 2 * torch.finfo(dtype).eps * 2.1 * float(a)


def test_half_precision_times_are_read_where_they_are():
    t = torch.linspace(0, 1, 11).bfloat16()  # its gaps differ by a twentieth
    y = ode.odeint(decay, torch.ones(1, dtype=D), t, method="kahan_li6")
    assert float((y[:, 0] - torch.exp(-t.double())).abs().max()) <= 1e-4  # 1/1000 of a step is not told apart
    assert float((y[:, 0] - torch.exp(-torch.linspace(0, 1, 11, dtype=D))).abs().max()) > 5e-4


@pytest.mark.parametrize("times", [[1.0, 0.5, 0.0], [1.0, 0.93, 0.5, 0.0], [0.0, -0.5, -1.0], [-1.0, 0.2]])
def test_falling_and_uneven_times(times):
    t = torch.tensor(times, dtype=D)
    y = ode.odeint(decay, torch.ones(1, dtype=D), t, method="kahan_li6", options={"step_size": 0.05})
    assert float((y[:, 0] / torch.exp(-(t - t[0])) - 1).abs().max()) <= 1e-6


@pytest.mark.parametrize("method", [None, "rk4"])
def test_lists_and_arrays_of_times(method):
    y0, exact = torch.ones(1, dtype=D), torch.tensor([0.0, 1.0, 2.0], dtype=D)
    right = ode.odeint(decay, y0, exact, method=method)
    arrays = (np.array([0, 1, 2], dtype) for dtype in ("i4", "u8", "f2", "f4", ">f8", "g"))
    for t in ([0, 1, 2], (0.0, 1.0, 2.0), range(3), exact.int(), exact.half(), exact.bfloat16(), *arrays):
        assert torch.equal(ode.odeint(decay, y0, t, method=method), right)


def test_one_time_is_the_start():
    found = ode.odeint(decay, torch.ones(2, dtype=D), torch.tensor([0.5]), method="kahan_li6")
    assert found.tolist() == [[1.0, 1.0]]


# ---- gradients with respect to the times
# ----------------------------------------------------------------------

#: Times of a uniform t, whose grid they are; of a grid that they miss; of one that they partly hit; falling.
MOVING = {
    "grid points": (torch.linspace(0, 1, 6, dtype=D), None),
    "grid points in float32": (torch.linspace(0, 1, 6), None),
    "between": (torch.tensor([0.5, 0.53, 0.7, 1.4], dtype=D), {"step_size": 0.01}),
    "both": (torch.tensor([0.0, 0.25, 0.4, 1.0], dtype=D), {"step_size": 1 / 64}),
    "falling": (torch.tensor([1.0, 0.75, 0.7, 0.0], dtype=D), {"step_size": 1 / 64}),
}


def times_gradient(name, times, options, y0=None):
    """The gradient of a weighted sum of y' = -y (1 + t) at all times, and the closed form's."""
    t = times.clone().requires_grad_()
    y = ode.odeint(
        lambda t, y: -y * (1 + t),
        torch.ones(1, dtype=D) if y0 is None else y0,
        t,
        method=name,
        options=options,
    )
    weights = torch.linspace(1.0, 2.0, len(t), dtype=D)
    (found,) = torch.autograd.grad((weights * y[:, 0]).sum(), t)
    exact = times.double().requires_grad_()
    right = torch.exp((exact[0] + exact[0] ** 2 / 2) - (exact + exact**2 / 2))
    (wanted,) = torch.autograd.grad((weights * right).sum(), exact)
    assert found.dtype == times.dtype
    return float((found.double() - wanted).abs().max())


@pytest.mark.parametrize("case", MOVING)
@pytest.mark.parametrize("name", ["kahan_li6", "reversible_dopri5"])
def test_every_time_is_differentiated(name, case):
    times, options = MOVING[case]
    bound = 2e-4 if options is None else 1e-6  # steps of 0.2, and of less than 0.02
    assert times_gradient(name, times, options) <= bound


def test_a_gradient_of_the_times_that_stops_is_seen(monkeypatch):
    for case in ("grid points", "between", "both"):
        with monkeypatch.context() as patched:
            patched.setattr(READER, "_theta", lambda self, k, n, theta: theta)
            assert times_gradient("kahan_li6", *MOVING[case]) > 0.1


def test_times_are_differentiated_as_finite_differences_say():
    """All inputs at once, on a grid that no perturbed time reaches: the state is a pair here."""
    t = torch.tensor([0.0, 0.31, 0.52, 0.97], dtype=D, requires_grad=True)
    q, v = (torch.tensor(x, dtype=D, requires_grad=True) for x in ([0.4, -0.3], [1.0, 0.2]))

    def run(q, v, t):
        field = ode.SecondOrder(lambda t, q: -torch.sin(q) * t)
        return ode.odeint(field, (q, v), t, method="yoshida4", options={"step_size": 0.1})

    assert torch.autograd.gradcheck(run, (q, v, t), eps=1e-5, atol=1e-7)


def test_times_that_are_differentiated_need_tensors():
    t = torch.linspace(0, 1, 3, dtype=D, requires_grad=True)
    with pytest.raises(revstep.ConfigError, match="y0 is no tensor"):
        ode.odeint(decay, np.ones(1), t)
    with torch.no_grad():
        assert isinstance(ode.odeint(decay, np.ones(1), t), np.ndarray)


def test_t_eval_of_integrate_is_differentiated_too():
    t = torch.tensor([0.25, 0.4], dtype=D, requires_grad=True)
    run = ode.integrate(decay, torch.ones(1, dtype=D), scheme="kahan_li6", h=0.05, steps=20, t_eval=t)
    (g,) = torch.autograd.grad(run.ys.sum(), t)
    assert torch.allclose(g, -torch.exp(-t.detach()), atol=1e-5, rtol=0)


# ---- odeint_adjoint
# -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [None, "kahan_li6", "rk4"])
def test_odeint_adjoint_is_odeint(name):
    field, y0 = cases.Driven(), cases.tensors(1)[0].requires_grad_()
    t = torch.linspace(0, 1, 5, dtype=D, requires_grad=True)
    found = []
    for solve, more in ((ode.odeint, {}), (ode.odeint_adjoint, {"adjoint_params": field.parameters()})):
        ys = solve(field, y0, t, method=name, **more)
        found.append([ys, *torch.autograd.grad(ys.square().sum(), [y0, t, *field.parameters()])])
    assert all(torch.equal(a, b) for a, b in zip(*found))


@pytest.mark.parametrize("name", ["adjoint_rtol", "adjoint_atol", "adjoint_method", "adjoint_options"])
def test_odeint_adjoint_refuses_what_only_a_second_equation_has(name):
    value = {"adjoint_method": "rk4", "adjoint_options": {}}.get(name, 1e-3)
    with pytest.raises(revstep.ConfigError, match=f"{name} given.*no second equation"):
        ode.odeint_adjoint(decay, torch.ones(1), torch.linspace(0, 1, 5), **{name: value})
    with pytest.raises(revstep.ConfigError, match="adjoint_params has float"):
        ode.odeint_adjoint(decay, torch.ones(1), torch.linspace(0, 1, 5), adjoint_params=[1.0])
    with pytest.raises(revstep.ConfigError, match="rtol given"):
        ode.odeint_adjoint(decay, torch.ones(1), torch.linspace(0, 1, 5), rtol=1e-3)
