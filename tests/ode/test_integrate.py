"""Every method, equation kind and state format: reversal to the bit, agreement with independent loops, forms
of input.
"""

import math

import numpy as np
import ode_cases as cases
import pytest
import torch

import revstep
from revstep import ode

pytestmark = pytest.mark.filterwarnings("error")


# ---- reversal ----


@pytest.mark.parametrize("state", cases.EXACT)
@pytest.mark.parametrize("name, equation", cases.CASES)
def test_reversal_returns_the_same_bits(name, equation, state):
    field, y0 = cases.problem(equation, cases.tensors())
    with torch.no_grad():
        there = ode.integrate(
            field, y0, scheme=name, h=0.05, steps=21, state=cases.STATES[state], save_every=4
        )
    back = there.reverse()
    assert back.exact and back.ts.tolist() == there.ts.flip(0).tolist()
    assert torch.equal(back.ys, there.ys.flip(0)) and (
        there.second is None or torch.equal(back.second, there.second.flip(0))
    )
    assert not torch.equal(there.final[0], there.start[0])  # it went somewhere


@pytest.mark.parametrize("name, equation", cases.CASES)
def test_a_changed_bit_or_field_is_not_exact(name, equation):
    """What `exact` says can be false: another parameter on the way back."""
    field, y0 = cases.problem(equation, cases.tensors(), first := cases.Driven(0))
    with torch.no_grad():
        there = ode.integrate(field, y0, scheme=name, h=0.05, steps=5)
        first.net[0].bias[0] += 1e-9
    assert not there.reverse().exact


@pytest.mark.parametrize("name, equation", cases.CASES)
def test_saving_does_not_change_the_trajectory(name, equation):
    field, y0 = cases.problem(equation, cases.tensors())
    with torch.no_grad():
        runs = [ode.integrate(field, y0, scheme=name, h=0.05, steps=12, save_every=k) for k in (None, 1, 5)]
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run.final, runs[0].final)) and torch.equal(
            run.ys[-1], runs[0].ys[-1]
        )
    assert runs[1].ys.shape == (13, 4, 3) and runs[2].ts.tolist() == pytest.approx([0.0, 0.25, 0.5, 0.6])


@pytest.mark.parametrize("name, equation", cases.CASES)
def test_float_states_come_back_within_rounding(name, equation):
    """Each of the 10 steps has at most 35 micro-steps of a few roundings, amplified by 1/|alpha| and by the
    field (bound: 2 a step).
    """
    field, y0 = cases.problem(equation, cases.tensors())
    with torch.no_grad():
        there = ode.integrate(field, y0, scheme=name, h=0.01, steps=10, state=cases.STATES["float64"])
    error = max(float((a - b).abs().max()) for a, b in zip(there.reverse().final, there.start))
    amplified = math.prod(
        1 / min(1.0, abs(m.alpha)) for n in range(10) for m in cases.METHODS[name].micros(n, equation)
    )
    assert error <= 64 * 35 * 10 * 2.0**-52 * amplified * 2.0**10


# ---- against independent loops ----


@pytest.mark.parametrize("name", ["midpoint", "blend", "leapfrog"])
def test_two_step_methods_are_the_schemes_own_steps(name):
    """The states are those of scheme.step called by hand."""
    fmt, h = revstep.FixedPoint(64, 40), 0.05
    scheme = revstep.schemes.make(name, h=h)
    y = cases.tensors()[0]
    f = lambda t, x: torch.sin(x) * torch.cos(t)  # noqa: E731
    y0, start = ((y, torch.zeros_like(y)), torch.zeros_like(y)) if name == "leapfrog" else (y, None)
    found = ode.integrate(f, y0, scheme=scheme, h=h, steps=7, state=fmt, scale=1.0)
    prev = cur = fmt.encode(y)[1]
    for n in range(7):
        value = f(torch.tensor(n * h, dtype=torch.float64), fmt.decode(cur, torch.float64))
        if n == 0:
            nxt = revstep.ops.step(
                prev, cur, value, *scheme.start_coefficients(0, "euler"), fmt.frac_bits, None
            )[1]
        else:
            nxt = scheme.step(prev, cur, value, layer=n, state=fmt)
        prev, cur = cur, nxt
    assert torch.equal(found.final[(7 + 1) % 2], cur) and torch.equal(found.final[7 % 2], prev)
    assert start is None or found.velocities is not None


def _by_hand(a, b, F, G, q, p, h, steps):
    """An ABA splitting in plain floats with one clock a stream."""
    for n in range(steps):
        tq = tp = n * h
        for i in range(len(b)):
            q = q + a[i] * h * F(tp, p)
            tq += a[i] * h
            p = p + b[i] * h * G(tq, q)
            tp += b[i] * h
        q = q + a[-1] * h * F(tp, p)
    return q, p


@pytest.mark.parametrize("name", sorted(ode.compositions.available()))
def test_splittings_against_a_loop_by_hand(name):
    """In fixed point with a grid of 2**-60 the difference is rounding: a few eps a substep, 35 substeps, 20
    steps.
    """
    data = ode.compositions.get(name)
    F, G = (lambda t, p: p * (1 + 0.1 * np.sin(t))), (lambda t, q: -np.sin(q) + 0.2 * np.cos(3 * t))
    q0, p0 = np.array([0.3, -1.1]), np.array([0.5, 0.2])
    field = ode.Separable(F, G, interval=(-math.inf, math.inf))
    state = revstep.FixedPoint(64, 59)
    found = ode.integrate(field, (q0, p0), scheme=name, h=0.05, steps=20, state=state, scale=1.0)
    q, p = _by_hand(data.full_a(), data.full_b(), F, G, q0, p0, 0.05, 20)
    assert max(abs(found.ys[-1] - q).max(), abs(found.momenta[-1] - p).max()) <= 4 * 35 * 20 * 2.0**-52


def test_reversible_rk_against_a_loop_by_hand():
    f = lambda t, y: np.sin(y) + np.cos(t)  # noqa: E731

    def psi(t, h, y):  # classic RK4
        k1 = f(t, y)
        k2 = f(t + h / 2, y + h / 2 * k1)
        k3 = f(t + h / 2, y + h / 2 * k2)
        return h / 6 * (k1 + 2 * k2 + 2 * k3 + f(t + h, y + h * k3))

    y = z = np.array([0.2, -0.7])
    lam, h = 0.875, 0.1
    for n in range(10):
        y = lam * y + (1 - lam) * z + psi(n * h, h, z)
        z = z - psi((n + 1) * h, -h, y)
    found = ode.integrate(f, np.array([0.2, -0.7]), scheme=ode.ReversibleRK("rk4", lam=lam), h=h, steps=10)
    assert abs(found.ys[-1] - y).max() <= 64 * 10 * 2.0**-52
    assert found.reverse().exact and found.stats.carry_bytes > 0


def test_symplectic_euler_and_leapfrog_by_hand():
    h, q, v = 0.1, 1.0, 0.3
    found = ode.integrate(lambda t, q: -q, (np.array([q]), np.array([v])), scheme="hamiltonian", h=h, steps=9)
    verlet = ode.integrate(
        lambda t, q: -q,
        (np.array([q]), np.array([v])),
        scheme="leapfrog",
        h=h,
        steps=9,
        state=revstep.FixedPoint(64, 59),
    )
    a, b = q, v
    for _ in range(9):
        a = a + h * b
        b = b - h * a
    assert found.ys[-1, 0] == pytest.approx(a, abs=1e-14) and found.velocities[-1, 0] == pytest.approx(
        b, abs=1e-14
    )
    # Velocity Verlet, kick-drift-kick, is leapfrog in exact arithmetic, velocities included.
    for _ in range(9):
        v = v - h / 2 * q
        q = q + h * v
        v = v - h / 2 * q
    assert verlet.ys[-1, 0] == pytest.approx(q, abs=1e-14) and verlet.velocities[-1, 0] == pytest.approx(
        v, abs=1e-13
    )


# ---- forms of input ----


@pytest.mark.parametrize("name, equation", cases.CASES)
def test_numpy_and_torch_give_the_same_bits(name, equation):
    y = cases.tensors()
    arithmetic = [lambda t, x: x * (0.25 - x) + t, lambda t, x: x * x - t]
    field, y0 = cases.problem(equation, y, *arithmetic)
    _, arrays = cases.problem(equation, [x.numpy() for x in y], *arithmetic)
    torch_run = ode.integrate(field, y0, scheme=name, h=0.02, steps=6, save_every=2)
    numpy_run = ode.integrate(field, arrays, scheme=name, h=0.02, steps=6, save_every=2)
    assert isinstance(numpy_run.ys, np.ndarray) and isinstance(torch_run.ys, torch.Tensor)
    assert np.array_equal(numpy_run.ys, torch_run.ys.numpy()) and all(
        torch.equal(a, b) for a, b in zip(numpy_run.final, torch_run.final)
    )
    assert isinstance(torch_run.to_numpy().ys, np.ndarray)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3, 4), (0,)])
def test_any_shape(shape):
    y0 = torch.ones(shape, dtype=torch.float64)
    run = ode.integrate(lambda t, y: -y, y0, scheme="midpoint", h=0.125, steps=8)
    assert run.ys.shape == (2, *shape) and run.reverse().exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_low_precision_fields_are_still_reversed_exactly(dtype):
    y0 = cases.tensors(1, dtype=dtype)[0]
    run = ode.integrate(lambda t, y: torch.sin(y), y0, scheme="yoshida4", h=0.1, steps=10)
    assert run.ys.dtype == dtype and run.reverse().exact


def test_a_batch_is_its_members():
    y = cases.tensors(1)[0]
    options = {"scheme": "kahan_li6", "h": 0.1, "steps": 5, "scale": 1.0}
    whole = ode.integrate(lambda t, y: torch.sin(y) - t, y, **options)
    alone = [ode.integrate(lambda t, y: torch.sin(y) - t, row, **options) for row in y]
    assert torch.equal(whole.final[0], torch.stack([a.final[0] for a in alone]))


def test_scales_are_units_of_the_components():
    y0 = np.array([1.0, 2.0**40])
    f = lambda t, y: np.array([-y[0], -y[1]])  # noqa: E731
    run = ode.integrate(
        f, y0, scheme="midpoint", h=0.125, steps=16, state=revstep.FixedPoint(64, 50), scale=[1.0, 2.0**40]
    )
    assert (
        run.ys[-1, 1] == 2.0**40 * run.ys[-1, 0]
        and run.reverse().exact
        and int(run.final[0][0]) == int(run.final[0][1])
    )
    with pytest.raises(revstep.StateOverflowError, match=r"step 0.*FixedPoint\(bits=64, frac_bits=50\)"):
        ode.integrate(
            f, y0, scheme="midpoint", h=0.125, steps=16, state=revstep.FixedPoint(64, 50), scale=1.0
        )


def test_from_energies():
    field = ode.FromEnergies(lambda p: 0.5 * p**2, lambda q: -torch.cos(q))
    q0, p0 = torch.tensor([1.0, 2.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    run = ode.integrate(field, (q0, p0), scheme="yoshida6", h=0.05, steps=40, save_every=10)
    drift = (run.energy - run.energy[0]).abs().max()
    # Order 6: (h/2)**6 times constants of order one.
    assert drift < 1e-7 and run.energy.shape == (5, 2) and run.reverse().exact
    assert (
        ode.integrate(field, (q0, p0), scheme="hamiltonian", h=0.05, steps=40, save_every=10).energy
        - run.energy[0]
    ).abs().max() > 1e-3


def test_negative_steps_go_back_in_time():
    run = ode.integrate(lambda t, y: y, np.array([1.0]), scheme="reversible_rk4", h=-0.05, steps=20, t0=1.0)
    assert run.ts[-1] == pytest.approx(0.0, abs=1e-15) and run.ys[-1, 0] == pytest.approx(
        math.exp(-1.0), abs=1e-6
    )


def test_no_steps_is_the_start():
    run = ode.integrate(lambda t, y: y, np.array([1.5]), scheme="midpoint", h=0.1, steps=0)
    assert run.ts.tolist() == [0.0] and run.ys.tolist() == [[1.5]] and run.reverse().exact


def test_one_step_of_a_list_of_coefficients():
    run = ode.integrate(
        lambda t, y: y, np.array([1.5]), scheme=revstep.MidpointBlend(a=(0.75,)), h=0.1, steps=1
    )
    assert run.ys[-1, 0] == pytest.approx(1.65) and run.reverse().exact


def test_progress_is_called():
    seen = []
    ode.integrate(
        lambda t, y: y,
        np.array([1.0]),
        scheme="midpoint",
        h=0.1,
        steps=4,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_shared_evaluations_are_counted_once():
    calls = []
    field = (lambda t, p: calls.append(t) or p, lambda t, q: -q)
    run = ode.integrate(field, (np.ones(1), np.ones(1)), scheme="verlet", h=0.1, steps=10, scale=1.0)
    assert run.stats.evaluations == 10 + 11  # one drift and one kick a step, one drift more
    assert len(calls) == 11 + 1  # the first is asked for twice


# ---- times between grid points ----


@pytest.mark.parametrize("equation", ["first", "second", "separable"])
def test_interpolation_has_order_4(equation):
    errors = []
    for n in (16, 32, 64):
        # The largest error over all places between grid points.
        h, times = (1.0 / n, np.linspace(0.0, 1.0, 1001))
        if equation == "first":
            run = ode.integrate(
                lambda t, y: y, np.array([1.0]), scheme="reversible_dopri5", h=h, steps=n, t_eval=times
            )
            exact = np.exp(times)[:, None]
        else:
            field = (lambda t, q: -q) if equation == "second" else (lambda t, p: p, lambda t, q: -q)
            run = ode.integrate(
                field, (np.array([1.0]), np.array([0.0])), scheme="yoshida6", h=h, steps=n, t_eval=times
            )
            exact = np.cos(times)[:, None]
            assert abs(run.second[:, 0] + np.sin(times)).max() < 10 * h**4
        assert run.ts == pytest.approx(times)
        errors.append(abs(run.ys - exact).max())
    assert abs(math.log2(errors[0] / errors[2]) / 2 - 4) <= 0.3


def test_grid_times_are_not_interpolated():
    run = ode.integrate(
        lambda t, y: y, np.array([1.0]), scheme="midpoint", h=0.1, steps=10, t_eval=[0.3, 1.0]
    )
    grid = ode.integrate(lambda t, y: y, np.array([1.0]), scheme="midpoint", h=0.1, steps=10, save_every=1)
    assert run.ys[0, 0] == grid.ys[3, 0] and run.ys[1, 0] == grid.ys[10, 0]


# ---- the plot ----


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    run = ode.integrate(
        lambda t, q: -q, (np.ones(2), np.zeros(2)), scheme="verlet", h=0.1, steps=50, save_every=1
    )
    ax = run.plot()
    assert len(ax.get_lines()) == 4 and [t.get_text() for t in ax.get_legend().get_texts()] == [
        "q[0]",
        "q[1]",
        "v[0]",
        "v[1]",
    ]
    ax.figure.savefig(tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
