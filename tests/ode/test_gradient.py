"""Gradients of integrations: against stored autograd and finite differences, in memory that does not grow
with the steps.
"""

import math
import weakref

import ode_cases as cases
import pytest
import torch

import revstep
from revstep import ode
from revstep.ode._units import make_grid
from revstep_lab.verify.ode.oracle import stored


def _scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def _setting(name, equation, state, steps=9):
    """Leaves, and functions that run ours and the oracle from them."""
    method, fmt = cases.METHODS[name], cases.STATES[state]
    y = [x.requires_grad_() for x in cases.tensors()]
    w, h, t0 = _scalar(0.7), _scalar(0.05), _scalar(0.3)
    field, y0 = cases.problem(equation, y)
    parameters = (
        [p for f in field.functions() for p in f.parameters()]
        if hasattr(field, "functions")
        else list(field.parameters())
    )
    shared = any(m.beta for n in (0, 1) for m in method.micros(n, equation))
    grid = make_grid(fmt, None, method.begin(equation, y0, h), shared)

    def ours():
        run = ode.integrate(field, y0, scheme=name, h=h, steps=steps, t0=t0, args=(w,), state=fmt)
        return [run.ys[-1]] + ([] if run.second is None else [run.second[-1]])

    def theirs():
        return stored(field, y0, method=method, grid=grid, h=h, steps=steps, t0=t0, args=(w,))

    leaves = {
        "y0": y[: 1 if equation == "first" else 2],
        "w": [w],
        "h": [h],
        "t0": [t0],
        "parameters": parameters,
    }
    return leaves, ours, theirs


def _compare(name, equation, state):
    leaves, ours, theirs = _setting(name, equation, state)
    flat = [x for group in leaves.values() for x in group]
    a, b = ours(), theirs()
    cotangents = [torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype) for x in a]
    got, expected = (torch.autograd.grad(out, flat, cotangents, allow_unused=True) for out in (a, b))
    return leaves, a, b, got, expected


@pytest.mark.parametrize("state", cases.EXACT)
@pytest.mark.parametrize("name, equation", cases.CASES)
def test_gradients_are_stored_autograds(name, equation, state):
    """Values bit for bit. Gradients bit for bit where the order of accumulation is autograd's: with respect
    to y0 and parameters, for methods that evaluate a function once a micro-step and read nothing out through
    it; else (sums over the run in another order) to rounding: at most 16 eps a term, 9 steps of at most 35
    micro-steps of 4 uses, relative to the largest entry."""
    leaves, a, b, got, expected = _compare(name, equation, state)
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    plain = cases.METHODS[name].tableau is None and name != "leapfrog"
    at = 0
    for group, members in leaves.items():
        for _ in members:
            x, y = got[at], expected[at]
            at += 1
            if y is None:
                assert x is None or not x.any()
            elif plain and group in ("y0", "parameters"):
                assert torch.equal(x, y), (group, float((x - y).abs().max()))
            else:
                assert float((x - y).abs().max()) <= 16 * 9 * 35 * 4 * 2.0**-53 * max(
                    float(y.abs().max()), 1.0
                ), group


@pytest.mark.parametrize("name, equation", [c for c in cases.CASES if c[0] != "midpoint_blend"])
def test_float_states_give_stored_gradients_to_rounding(name, equation):
    """The rebuilt states are off by rounding, amplified by 1/|alpha| a step (9 steps)."""
    _, _, _, got, expected = _compare(name, equation, "float64")
    amplified = math.prod(
        1 / min(1.0, abs(m.alpha)) for n in range(9) for m in cases.METHODS[name].micros(n, equation)
    )
    for x, y in zip(got, expected):
        if y is not None:
            assert float((x - y).abs().max()) <= 16 * 9 * 35 * 4 * 2.0**-52 * amplified * max(
                float(y.abs().max()), 1.0
            )


@pytest.mark.parametrize("name, equation", [c for c in cases.CASES if c[0] != "midpoint_blend"])
def test_gradients_are_finite_differences(name, equation):
    """Along one random direction of all leaves, in float states (fixed point rounds each step, which
    differences would see).
    """
    leaves, ours, _ = _setting(name, equation, "float64", steps=3)
    flat = [x for group in leaves.values() for x in group]
    g = torch.Generator().manual_seed(5)
    direction = [
        torch.randn(x.shape, generator=g, dtype=x.dtype) * (0.01 if x.ndim == 0 else 1.0) for x in flat
    ]
    weights = [torch.randn(x.shape, generator=g, dtype=x.dtype) for x in ours()]

    def value(s):
        with torch.no_grad():
            for x, d in zip(flat, direction):
                x += s * d
            out = sum(float((y * w).sum()) for y, w in zip(ours(), weights))
            for x, d in zip(flat, direction):
                x -= s * d
        return out

    slope = sum(
        (x * d).sum()
        for x, d in zip(torch.autograd.grad(ours(), flat, weights, allow_unused=True), direction)
        if x is not None
    )
    step = 1e-5
    # Fourth order: error step**4 + eps/step.
    difference = (8 * (value(step) - value(-step)) - (value(2 * step) - value(-2 * step))) / (12 * step)
    assert abs(difference - float(slope)) <= 1e-8 * max(1.0, abs(difference))


@pytest.mark.parametrize(
    "name, equation", [("midpoint", "first"), ("yoshida4", "second"), ("kahan_li6", "separable")]
)
def test_saved_states_are_differentiable(name, equation):
    """A loss on every saved state: the sum of the losses of runs that end there."""
    y = [x.requires_grad_() for x in cases.tensors()]
    field, y0 = cases.problem(equation, y)
    run = ode.integrate(
        field, y0, scheme=name, h=0.05, steps=10, save_every=3, state=revstep.FixedPoint(64, 50)
    )
    got = torch.autograd.grad(run.ys.square().sum(), y, allow_unused=True)
    expected = [torch.zeros_like(x) for x in y]
    for n in (0, 3, 6, 9, 10):
        part = ode.integrate(field, y0, scheme=name, h=0.05, steps=n, state=revstep.FixedPoint(64, 50))
        for total, g in zip(expected, torch.autograd.grad(part.ys[-1].square().sum(), y, allow_unused=True)):
            total += 0.0 if g is None else g
    for a, b in zip(got, expected):
        assert b.any() == (a is not None)
        assert a is None or torch.allclose(a, b, rtol=1e-13, atol=1e-13)


def test_interpolated_states_are_differentiable():
    y = _scalar(0.4)

    def run(x):
        return ode.integrate(
            lambda t, y: torch.sin(y) * t,
            x,
            scheme="reversible_rk4",
            h=0.1,
            steps=10,
            t_eval=[0.234, 0.5, 0.777],
            state=cases.STATES["float64"],
        )

    (got,) = torch.autograd.grad(run(y).ys.sum(), y)
    with torch.no_grad():
        difference = (run(y + 1e-6).ys.sum() - run(y - 1e-6).ys.sum()) / 2e-6
    assert abs(got - difference) < 1e-8


def without_carries(name, equation):
    return not any(m.carry_bits for n in (0, 1, 2) for m in ode.available()[name].micros(n, equation))


BARE = [c for c in cases.CASES if c[0] != "midpoint_blend" and without_carries(*c)]


@pytest.mark.parametrize("name, equation", BARE)
def test_bytes_kept_do_not_grow_with_the_steps(name, equation):
    """Counted by saved-tensor hooks and by the report: 64 x 4 x 8 bytes a slot, at 4 and at 20 steps."""
    counted = {}
    for steps in (4, 20):
        y = [x.requires_grad_() for x in cases.tensors(shape=(64, 3))]
        field, y0 = cases.problem(equation, y)
        alive = weakref.WeakSet()

        # The graph of each evaluation is dropped at once: what is still alive is what backward keeps
        class Kept:
            def __init__(self, t, alive=alive):
                self.t = t.detach()  # an output saved as it is would hold the graph it is in
                alive.add(self)

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.t):
            run = ode.integrate(field, y0, scheme=name, h=1.0 / steps, steps=steps)
        kept = {
            k.t.data_ptr(): k.t.numel() * k.t.element_size()
            for k in alive
            if not isinstance(k.t, torch.nn.Parameter)
        }
        run.ys[-1].sum().backward()
        counted[steps] = (run.stats.bytes_saved, sum(kept.values()))
    assert counted[4] == counted[20]
    assert counted[4][0] == 2 * 64 * 3 * 8 + 2 * 16  # two slots, two checksums at the start and at the end


def test_bytes_kept_are_the_same_at_16_and_1024_steps_of_a_neural_field():
    """And lam < 1 keeps one bit an element and step beside it, coupled copies two."""

    def kept(scheme, steps):
        y = cases.tensors(1, (32, 3))[0].requires_grad_()
        run = ode.integrate(cases.Driven(), y, scheme=scheme, h=1.0 / steps, steps=steps)
        run.ys[-1].square().sum().backward()
        return run.stats.bytes_saved

    assert kept("midpoint", 16) == kept("midpoint", 1024) == 2 * 32 * 3 * 8 + 2 * 16
    coupled = ode.ReversibleRK("euler", lam=0.5)
    assert kept(coupled, 80) - kept(coupled, 16) == (80 - 16) * 32 * 3 // 8
    assert kept("verlet", 80) - kept("verlet", 16) == (80 - 16) * 2 * 32 * 3 // 8
    bare = ode.methods.SplittingMethod(ode.available()["verlet"].data, couple=0.0)
    assert kept(bare, 16) == kept(bare, 80) == 2 * 32 * 3 * 8 + 2 * 16


# ---- what a field may be
# --------------------------------------------------------------------------------------


def test_a_closure_over_leaves_is_trained():
    w = _scalar(0.5)
    y = cases.tensors(1)[0]
    run = ode.integrate(lambda t, y: torch.sin(w * y), y, scheme="midpoint", h=0.1, steps=5)
    run.ys[-1].sum().backward()
    assert w.grad is not None and w.grad != 0


def test_frozen_start_trains_the_field_and_frozen_parameters_get_none():
    field = cases.Driven()
    field.net[0].bias.requires_grad_(False)
    ode.integrate(field, cases.tensors(1)[0], scheme="yoshida4", h=0.1, steps=5).ys[-1].sum().backward()
    assert field.net[0].bias.grad is None and field.net[0].weight.grad is not None


def test_arguments_may_be_nested():
    a, b = _scalar(0.5), _scalar(2.0)
    y = cases.tensors(1)[0]
    run = ode.integrate(
        lambda t, y, o: torch.sin(o["a"] * y) * o["b"][0],
        y,
        scheme="midpoint",
        h=0.1,
        steps=5,
        args=({"a": a, "b": [b * 1.5, "text"]},),
    )
    run.ys[-1].sum().backward()
    assert a.grad and b.grad


def test_a_closure_over_a_computed_tensor_is_refused():
    w = _scalar(0.5)
    outer = w * 2
    with pytest.raises(revstep.UnsupportedError, match="pass it through args="):
        ode.integrate(
            lambda t, y: torch.sin(outer * y), cases.tensors(1)[0], scheme="midpoint", h=0.1, steps=5
        )


def test_a_random_field_is_refused():
    y = cases.tensors(1)[0].requires_grad_()
    with pytest.raises(revstep.UnsupportedError, match="draws random numbers"):
        ode.integrate(lambda t, y: torch.nn.functional.dropout(y, 0.5), y, scheme="midpoint", h=0.1, steps=5)


def test_a_field_that_changes_is_found_in_backward():
    field, y = cases.Driven(), cases.tensors(1)[0].requires_grad_()
    run = ode.integrate(field, y, scheme="midpoint", h=0.1, steps=6, save_every=2)
    with torch.no_grad():
        field.net[0].bias[0] += 1e-6
    with pytest.raises((revstep.ReconstructionError, RuntimeError)) as caught:
        run.ys[-1].sum().backward()
    assert "modified by an inplace operation" in str(caught.value) or caught.value.layer == 4


def test_hidden_state_that_sets_in_late_is_found_in_backward():
    """(One that is there from the first call on is refused in the forward pass: test_random_fields.py.)"""
    calls = []

    def field(t, y):
        calls.append(t)
        return torch.sin(y) * (1 + 1e-9 * max(0, len(calls) - 3))

    y = cases.tensors(1)[0].requires_grad_()
    run = ode.integrate(field, y, scheme="verlet", h=0.1, steps=6, save_every=2)
    with pytest.raises(revstep.ReconstructionError, match="rebuilt at step 4") as caught:
        run.ys[-1].sum().backward()
    assert caught.value.layer == 4


def test_second_derivatives_are_refused():
    y = _scalar(0.5)
    run = ode.integrate(lambda t, y: torch.sin(y), y, scheme="midpoint", h=0.1, steps=3)
    with pytest.raises(revstep.UnsupportedError, match="second derivatives"):
        torch.autograd.grad(run.ys[-1], y, create_graph=True)


def test_float_states_that_lose_the_start_warn():
    y = _scalar(1.0)
    run = ode.integrate(
        lambda t, y: -y,
        y,
        scheme=revstep.Blend(c=0.125),
        h=0.05,
        steps=40,
        state=revstep.Float(torch.float64),
    )
    with pytest.warns(revstep.ReconstructionWarning, match="off by"):
        run.ys[-1].backward()


def test_autocast_is_entered_again():
    net, y = cases.network(dtype=torch.float32), cases.tensors(1, dtype=torch.float32)[0].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run = ode.integrate(lambda t, y: net(y), y, scheme="yoshida4", h=0.1, steps=8)
    run.ys[-1].float().sum().backward()  # outside: would rebuild other states
    assert torch.isfinite(y.grad).all()


# ---- torchdiffeq
# ----------------------------------------------------------------------------------------------


def _rk_midpoint(f, y, h, steps):
    for n in range(steps):
        y = y + h * f(
            torch.tensor(n * h + h / 2, dtype=y.dtype), y + h / 2 * f(torch.tensor(n * h, dtype=y.dtype), y)
        )
    return y


def test_two_half_steps_are_one_runge_kutta_midpoint_step():
    """The start makes y1 = y0 + k f(0, y0), the rule y2 = y0 + 2 k f(k, y1): with k = h/2 that is RK2's
    midpoint step; gradients too.
    """
    field, y = cases.Driven(), cases.tensors(1)[0].requires_grad_()
    ours = ode.integrate(field, y, scheme="midpoint", h=0.05, steps=2, state=cases.STATES["float64"]).ys[-1]
    theirs = _rk_midpoint(field, y, 0.1, 1)
    leaves = [y, *field.parameters()]
    for a, b in zip(
        [ours, *torch.autograd.grad(ours.sum(), leaves)], [theirs, *torch.autograd.grad(theirs.sum(), leaves)]
    ):
        assert float((a - b).detach().abs().max()) <= 64 * 2.0**-52 * max(1.0, float(b.abs().max()))


def test_torchdiffeqs_stored_graph_where_the_schemes_coincide():
    torchdiffeq = pytest.importorskip("torchdiffeq", reason="torchdiffeq is not installed")
    field, y = cases.Driven(), cases.tensors(1)[0].requires_grad_()
    t = torch.tensor([0.0, 0.1], dtype=torch.float64)
    theirs = torchdiffeq.odeint(field, y, t, method="midpoint")[-1]
    ours = ode.odeint(
        field, y, t, method="two_step_midpoint", options={"step_size": 0.05, "state": cases.STATES["float64"]}
    )[-1]
    leaves = [y, *field.parameters()]
    for a, b in zip(
        [ours, *torch.autograd.grad(ours.sum(), leaves)], [theirs, *torch.autograd.grad(theirs.sum(), leaves)]
    ):
        assert float((a - b).detach().abs().max()) <= 64 * 2.0**-52 * max(1.0, float(b.abs().max()))
