"""``odeint`` with revstep's own methods on tuple states, and what it refuses of starts, fields and
options."""

import math

import numpy as np
import pytest
import torch
import torchdiffeq

import revstep
from revstep import ode

pytestmark = pytest.mark.filterwarnings("error")
D = torch.float64
FIRST_ORDER = sorted(name for name, m in ode.available().items() if "first" in m.equations)
FIRST_ORDER.remove("midpoint")  # which is torchdiffeq's here

PAIR = torch.ones(2, dtype=D), torch.ones(2, dtype=D)


def decay(t, y):
    return -y


class Flow(torch.nn.Module):
    """z' = A z cos t, (log p)' = -tr A, k' = -k mean z**2: parts of three shapes."""

    def __init__(self):
        super().__init__()
        self.A = torch.nn.Parameter(torch.tensor([[0.1, 0.4], [-0.3, -0.2]], dtype=D))

    def forward(self, t, parts):
        z, logp, k = parts
        return (
            z @ self.A.T * torch.cos(t),
            -torch.trace(self.A) * torch.ones_like(logp),
            -k * z.square().mean(),
        )


def flow_start(dtype=D):
    z = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=D)
    return tuple(x.to(dtype) for x in (z, torch.zeros(4, 1), torch.tensor(0.5)))


@pytest.mark.parametrize("as_module", [False, True])
@pytest.mark.parametrize("name", FIRST_ORDER)
def test_first_order_with_a_tuple_is_the_vector_of_its_parts(name, as_module):
    flow, start, t = Flow(), flow_start(), torch.linspace(0, 1, 5, dtype=D)
    f = flow if as_module else lambda t, parts: flow(t, parts)
    parts = ode.odeint(ode.FirstOrder(f), start, t, method=name)
    assert isinstance(parts, tuple) and [x.shape for x in parts] == [(5, 4, 2), (5, 4, 1), (5,)]

    def on_vector(t, y):
        values = flow(t, (y[:8].reshape(4, 2), y[8:12].reshape(4, 1), y[12]))
        return torch.cat([x.reshape(-1) for x in values])

    vector = ode.odeint(on_vector, torch.cat([x.reshape(-1) for x in start]), t, method=name)
    assert torch.equal(torch.cat([x.reshape(5, -1) for x in parts], 1), vector)
    ours, theirs = (torch.autograd.grad(sum(p[-1].sum() for p in x), flow.A)[0] for x in (parts, (vector,)))
    assert torch.equal(ours, theirs) and float(ours.abs().max()) > 0.1


def test_gradients_of_tuple_states_are_torchdiffeqs():
    flow, found = Flow(), []
    ours = dict(method="kahan_li8")
    theirs = dict(method="dopri5", rtol=1e-12, atol=1e-12)
    for solve, field, how in ((ode.odeint, ode.FirstOrder(flow), ours), (torchdiffeq.odeint, flow, theirs)):
        start = tuple(x.clone().requires_grad_() for x in flow_start())
        parts = solve(field, start, torch.linspace(0, 1, 9, dtype=D), **how)
        found.append(torch.autograd.grad(sum((x[-1] ** 2).sum() for x in parts), [*start, flow.A]))
    assert max(float((a - b).abs().max()) for a, b in zip(*found)) <= 1e-10  # their tolerance, summed


class Late(torch.nn.Module):
    """y' = -w y from t = 0.5 on: w is not met in the first evaluation."""

    def __init__(self):
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(1.0, dtype=D))

    def forward(self, t, parts):
        return tuple(-self.w * x if t >= 0.5 else torch.zeros_like(x) for x in parts)


def test_parameters_of_a_module_are_found_before_they_act():
    field = Late()
    y, _ = ode.odeint(ode.FirstOrder(field), PAIR, torch.linspace(0, 1, 33, dtype=D), method="reversible_rk4")
    (g,) = torch.autograd.grad(y[-1].sum(), field.w)
    assert float(g) == pytest.approx(-math.exp(-0.5), abs=0.1)  # 2 (-1/2) exp(-1/2); the jump costs a step


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_parts_keep_their_dtype_beside_the_float64_clock(dtype):
    def f(t, parts):
        y, k = parts
        return -y * t, -k * t.double()  # k has no axis: torch makes a float64 of it

    start = torch.ones(2, dtype=dtype), torch.tensor(1.0, dtype=dtype)
    y, k = ode.odeint(ode.FirstOrder(f), start, torch.linspace(0, 1, 17), method="kahan_li6")
    assert y.dtype == k.dtype == dtype
    assert float((y[-1].double() - math.exp(-0.5)).abs().max()) <= 64 * torch.finfo(dtype).eps


def test_units_of_the_parts():
    start = torch.tensor([1.0], dtype=D), torch.tensor([2.0**30], dtype=D)
    field = ode.FirstOrder(lambda t, parts: (-parts[0], -parts[1]))
    t, state = torch.linspace(0, 1, 5, dtype=D), revstep.FixedPoint(64, 55)
    with pytest.raises(revstep.StateOverflowError):
        ode.odeint(field, start, t, method="kahan_li6", options={"state": state, "scale": 1.0})
    options = {"state": state, "scale": (1.0, 2.0**30)}
    small, large = ode.odeint(field, start, t, method="kahan_li6", options=options)
    assert torch.equal(small * 2.0**30, large)


ODD = torch.ones(4, 2, dtype=D), torch.ones(4, 1, dtype=D)
F32 = torch.ones(2), torch.ones(2, dtype=D)
WRONG = {
    "a function and a pair": (decay, PAIR, {}, "two readings.*FirstOrder.*SecondOrder.*Separable.*rk4"),
    "a function and a pair, named": (decay, PAIR, dict(method="verlet"), "two readings"),
    "a tuple function": (lambda t, s: (-s[0], -s[1]), PAIR, dict(method="two_step_midpoint"), "two readings"),
    "parts of two shapes": (decay, ODD, {}, "two readings"),
    "three parts": (decay, (*PAIR, PAIR[0]), {}, "tuple of 3"),
    "one part": (decay, PAIR[:1], dict(method="kahan_li6"), "tuple of 1"),
    "parts of two dtypes": (ode.FirstOrder(decay), F32, {}, r"part 1 of y0 is torch\.float64.*one dtype"),
    "no parts": (ode.FirstOrder(decay), (), {}, "empty tuple"),
    "parts that are lists": (ode.FirstOrder(decay), ([1.0], [2.0]), {}, "part 0 of y0 is list"),
    "arrays": (ode.FirstOrder(decay), (np.ones(2), np.ones(2)), {}, "part 0 of y0 is ndarray"),
    "a value that is a tensor": (
        ode.FirstOrder(lambda t, s: s[0]),
        PAIR,
        {},
        "returned Tensor, expected a tuple of 2",
    ),
    "too few values": (ode.FirstOrder(lambda t, s: s[:1]), PAIR, {}, "returned 1 parts"),
    "a value of another shape": (
        ode.FirstOrder(lambda t, s: s[::-1]),
        ODD,
        {},
        r"part 0 .* has shape \(4, 1\)",
    ),
    "a value of another dtype": (
        ode.FirstOrder(lambda t, s: (s[0], s[1].float())),
        PAIR,
        {},
        r"part 1 .* is torch\.float32, expected torch\.float64",
    ),
    "a complex value": (
        ode.FirstOrder(lambda t, s: (1j * s[0], s[1])),
        PAIR,
        {},
        "complex128, but the state",
    ),
    "units of too few parts": (
        ode.FirstOrder(decay),
        PAIR,
        dict(options={"scale": (1.0,)}),
        "scale.*one for each part",
    ),
    "torchdiffeq's interpolant": (
        decay,
        PAIR[0],
        dict(options={"interp": "cubic"}),
        "'interp' belongs to torchdiffeq's",
    ),
    "a grid": (
        decay,
        PAIR[0],
        dict(options={"grid_constructor": decay}),
        "'grid_constructor' belongs to torchdiffeq's",
    ),
    "a step with a gradient": (
        decay,
        PAIR[0],
        dict(options={"step_size": torch.tensor(0.1, requires_grad=True)}),
        "step_size.*requires a gradient",
    ),
    "an unknown name": (
        decay,
        PAIR[0],
        dict(method="rk45"),
        "unknown method 'rk45'.*torchdiffeq's euler.*two_step_midpoint",
    ),
    "two tolerances": (decay, PAIR[0], dict(rtol=1e-3, atol=1e-3), "rtol and atol given"),
}


@pytest.mark.parametrize("field, y0, options, message", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused(field, y0, options, message):
    with pytest.raises(revstep.ConfigError, match=message):
        ode.odeint(field, y0, torch.linspace(0, 1, 5), **options)


def test_uneven_times_without_a_step_size_are_refused():
    with pytest.raises(revstep.ConfigError, match=r"not uniform.*step_size.*'rk4'"):
        ode.odeint(decay, torch.ones(1), torch.tensor([0.0, 0.2, 1.0]))
    with pytest.raises(revstep.ConfigError, match="not uniform"):
        # The last gap is three others: what float32 rounds at this size is not taken for an excuse.
        ode.odeint(decay, torch.ones(1), torch.tensor([1.7e9, 1.7e9 + 128, 1.7e9 + 512]))


def test_callbacks_of_torchdiffeq_are_not_left_out_in_silence():
    decay_told = lambda t, y: -y  # noqa: E731
    decay_told.callback_step = print
    with pytest.raises(revstep.ConfigError, match=r"callback_step.*progress"):
        ode.odeint(decay_told, torch.ones(1), torch.linspace(0, 1, 5))
