"""The compiled loop through ``integrate``: the same trajectory as the loop on tensors, and its
own ways out.
"""

import ctypes
import dataclasses

import numpy as np
import pytest
import torch

import revstep
from revstep import ode

# Sine and exponential are the compiled loop's own there, torch's in Python.
TRANSCENDENTAL = {"LotkaVolterraLog", "Pendulum"}
STATES = {"default": None, "fixed": revstep.FixedPoint(64, 45), "float64": revstep.Float(torch.float64)}


def _start(cls, seed=0, batch=3):
    """``(field, parts)`` of a built-in field with default or small parameters."""
    g = np.random.default_rng(seed)
    made = {
        "NBody": lambda: (cls(masses=(1.0, 0.1, 0.01), softening=0.5), (3, 3)),
        "Fput": lambda: (cls(), (5,)),
        "Linear": lambda: (cls([[0.0, 1.0], [-1.0, -0.1]]), (2,)),
        "HenonHeiles": lambda: (cls(), (2,)),
        "Kepler": lambda: (cls(), (3,)),
        "LotkaVolterra": lambda: (cls(), (2,)),
        "VanDerPol": lambda: (cls(), (2,)),
    }
    field, event = made.get(cls.__name__, lambda: (cls(), (4,)))()
    scale = 0.1 if cls.__name__ == "HenonHeiles" else 1.0
    return field, [scale * g.uniform(0.5, 1.5, (batch, *event)) for _ in range(2)]


FIELDS = ode.fields.available()
CASES = [
    (name, kind, method)
    for name, cls in FIELDS.items()
    for kind in cls.kinds
    for method, m in ode.available().items()
    if kind in m.equations
    and method
    in (
        "blend",
        "midpoint",
        "leapfrog",
        "hamiltonian",
        "verlet",
        "kahan_li6",
        "blanes_moan4",
        "reversible_rk4",
        "midpoint_blend",
    )
]


def _run(name, kind, method, state, **options):
    field, parts = _start(FIELDS[name])
    if field.equation != kind:
        field = dataclasses.replace(field, equation=kind)
    y0 = parts[0] if kind == "first" else tuple(parts)
    return ode.integrate(
        field, y0, scheme=method, h=0.01, steps=20, save_every=6, state=STATES[state], **options
    )


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name, kind, method", CASES)
def test_both_loops_take_the_same_steps(name, kind, method, state):
    """Bit for bit where the field is arithmetic (+ - * / sqrt); elsewhere to rounding."""
    fast, slow = _run(name, kind, method, state), _run(name, kind, method, state, loop="python")
    assert fast.stats.loop == "compiled" and slow.stats.loop == "python"
    assert np.array_equal(fast.ts, slow.ts) and np.allclose(fast.ys, slow.ys, rtol=0, atol=1e-12)
    if name not in TRANSCENDENTAL:
        assert np.array_equal(fast.ys, slow.ys) and all(
            torch.equal(a, b) for a, b in zip(fast.final, slow.final)
        )
        assert fast.second is None or np.array_equal(fast.second, slow.second)
        assert fast.stats.carry_bytes == 0 or slow.stats.carry_bytes > 0
    for run in (fast, slow):
        back = run.reverse()
        assert back.exact == (state != "float64") or state == "float64"
        assert np.array_equal(back.ts, run.ts[::-1])
        if state != "float64":
            assert np.array_equal(back.ys, run.ys[::-1]) and run.reverse().exact  # and once more


@pytest.mark.parametrize("name", [n for n, c in FIELDS.items() if hasattr(c, "energy")])
def test_energy_and_integrals_are_held_by_a_good_method(name):
    field, parts = _start(FIELDS[name])
    if field.equation == "first":
        run = ode.integrate(field, parts[0], scheme="kahan_li6", h=0.01, steps=100, save_every=10)
    else:
        run = ode.integrate(field, tuple(parts), scheme="kahan_li6", h=0.01, steps=100, save_every=10)
    values = {"energy": run.energy, **run.integrals}
    for what, value in values.items():
        if value is not None:
            assert value.shape[0] == 11 and np.max(np.abs(value - value[0])) < 1e-7 * max(
                1.0, np.max(np.abs(value[0]))
            ), what


def test_threads_and_batch_splits_do_not_change_a_bit():
    field = ode.fields.Pendulum()
    g = np.random.default_rng(1)
    y0 = (g.normal(size=(1001, 1)), g.normal(size=(1001, 1)))
    whole = ode.integrate(field, y0, scheme="kahan_li6", h=0.05, steps=40, threads=1)
    for threads in (2, 3):
        assert torch.equal(
            ode.integrate(field, y0, scheme="kahan_li6", h=0.05, steps=40, threads=threads, state=None).final[
                0
            ],
            whole.final[0],
        )
    unit = whole.ys[-1][700:701]
    alone = ode.integrate(
        field, (y0[0][700:701], y0[1][700:701]), scheme="kahan_li6", h=0.05, steps=40, scale=4.0
    )
    again = ode.integrate(field, y0, scheme="kahan_li6", h=0.05, steps=40, scale=4.0)
    assert torch.equal(alone.final[0][0], again.final[0][700]) and np.allclose(alone.ys[-1], unit, atol=1e-13)


def test_component_scales_give_the_loop_on_tensors_its_bits():
    field = ode.fields.Linear([[0.0, 1.0], [-1.0, 0.0]])
    scale = [1.0, 2.0**-8]
    runs = [
        ode.integrate(
            field,
            np.array([1.0, 1e-3]),
            scheme="blend",
            h=0.01,
            steps=30,
            state=revstep.FixedPoint(64, 50),
            scale=scale,
            loop=loop,
        )
        for loop in ("compiled", "python")
    ]
    assert all(torch.equal(a, b) for a, b in zip(runs[0].final, runs[1].final)) and runs[0].reverse().exact


def test_a_scale_changes_nothing_in_float_states():
    field, y0 = ode.fields.Kepler(), (np.array([0.9, 0.0]), np.array([0.0, 1.1]))
    runs = [
        ode.integrate(
            field,
            y0,
            scheme="verlet",
            h=0.05,
            steps=50,
            state=revstep.Float(torch.float64),
            scale=scale,
            loop=loop,
        )
        for loop in ("compiled", "python")
        for scale in (None, 2.0, np.array([0.25, 8.0]))
    ]
    assert all(
        np.array_equal(run.ys, runs[0].ys) and np.array_equal(run.momenta, runs[0].momenta) for run in runs
    )


def test_gradients_take_the_loop_on_tensors():
    q, p = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    run = ode.integrate(ode.fields.Harmonic(), (q, p), scheme="verlet", h=0.1, steps=10)
    assert run.stats.loop == "python"
    run.ys[-1].sum().backward()
    assert q.grad is not None and p.grad is not None
    with pytest.raises(revstep.ConfigError, match="a gradient is asked for"):
        ode.integrate(ode.fields.Harmonic(), (q, p), scheme="verlet", h=0.1, steps=10, loop="compiled")


@pytest.mark.parametrize("loop", ["compiled", "python"])
def test_overflow_names_the_step_in_both_loops(loop):
    with pytest.raises(revstep.StateOverflowError, match="step") as caught:
        ode.integrate(
            ode.fields.Linear([[3.0]]),
            np.array([1.0]),
            scheme="midpoint",
            h=0.5,
            steps=100,
            loop=loop,
            scale=1.0,
        )
    assert caught.value.layer == 4 and caught.value.largest > caught.value.limit
    with pytest.raises(revstep.StateOverflowError, match="not finite"):
        ode.integrate(
            ode.fields.Linear([[3.0]]),
            np.array([1e300]),
            scheme="midpoint",
            h=0.5,
            steps=100,
            loop=loop,
            state=STATES["float64"],
        )


def test_a_users_c_function():
    cfunc = ode._functions.CFUNCTYPE

    @cfunc
    def spring(t, x, out, n, user):
        k = ctypes.cast(user, ctypes.POINTER(ctypes.c_double))[0]
        for i in range(n):
            out[i] = -k * x[i]

    k = np.array([4.0])
    field = ode.CompiledField(spring, equation="second", dim=2, user_data=k)
    y0 = (np.array([[1.0, 0.5]]), np.zeros((1, 2)))
    fast = ode.integrate(field, y0, scheme="yoshida4", h=0.01, steps=50)
    slow = ode.integrate(ode.SecondOrder(lambda t, q: -4.0 * q), y0, scheme="yoshida4", h=0.01, steps=50)
    assert fast.stats.loop == "compiled" and np.array_equal(fast.ys, slow.ys) and fast.reverse().exact
    called = ode.integrate(field, y0, scheme="yoshida4", h=0.01, steps=50, loop="python")
    assert np.array_equal(called.ys, fast.ys)


def test_interpolation_of_a_compiled_run():
    run = ode.integrate(
        ode.fields.Harmonic(),
        (np.array([1.0]), np.array([0.0])),
        scheme="kahan_li8",
        h=0.05,
        steps=40,
        t_eval=[0.123, 1.0, 1.987],
    )
    assert run.stats.loop == "compiled" and np.allclose(run.ys[:, 0], np.cos([0.123, 1.0, 1.987]), atol=1e-6)


def test_a_scale_that_differs_over_the_batch_runs_in_both_loops():
    sizes = 2.0 ** np.arange(-30, 9)[:, None]
    y0 = (sizes * [[0.75, 0.5]], sizes * [[0.25, -0.5]])
    options = {"scheme": "yoshida4", "h": 0.05, "steps": 40, "scale": 2.0 * sizes}
    fast, slow = (
        ode.integrate(ode.fields.Harmonic(), y0, loop=loop, **options) for loop in ("compiled", "python")
    )
    assert fast.stats.loop == "compiled" and fast.reverse().exact and np.array_equal(fast.ys, slow.ys)
    one = ode.integrate(ode.fields.Harmonic(), y0, **{**options, "scale": 1024.0}, loop="compiled")
    assert np.array_equal(fast.ys[-1] / sizes, np.broadcast_to(fast.ys[-1][:1] / sizes[:1], (len(sizes), 2)))
    assert not np.array_equal(one.ys, fast.ys)  # with one unit for all, the small ones lose bits


def test_an_overflow_in_a_batch_with_units_of_its_own_names_the_system():
    sizes = np.array([[1.0], [2.0**-20], [1.0]])
    y0 = (sizes * [[0.5, 0.25], [0.5, 300.0], [0.5, 0.25]], np.zeros((3, 2)))
    options = {"scheme": "verlet", "h": 0.5, "steps": 200, "scale": 4.0 * sizes, "loop": "compiled"}
    field = ode.fields.Linear([[0.0, 0.0], [0.0, 1.0]], equation="second")
    with pytest.raises(revstep.StateOverflowError, match=r"component \(1, 1\)"):
        ode.integrate(field, y0, **options)
