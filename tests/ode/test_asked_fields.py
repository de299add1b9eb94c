"""A field may return one buffer again and mark its argument; chance is refused, and writing into it."""

import random
import threading
from itertools import product

import numpy as np
import ode_cases as cases
import pytest
import torch

import revstep
from revstep import ode
from revstep.ode import _evaluations, _problem, _runs
from revstep.ode._loop import Walker

FIRST = [name for name, m in ode.available().items() if "first" in m.equations]


def _start():
    return torch.tensor([1.0, 0.25], dtype=torch.float64)


def _turned(t, y):
    return torch.stack([y[1], -y[0]])


def _in_buffer(kind):
    """The same field with one buffer for all its values."""
    buffer = torch.empty(2, dtype=torch.float64)
    array = np.empty(2)

    def item(t, y):
        buffer[0], buffer[1] = y[1], -y[0]
        return buffer

    def out(t, y):
        return torch.mul(y.flip(0), torch.tensor([1.0, -1.0], dtype=torch.float64), out=buffer)

    def view(t, y):
        return item(t, y).view(2)

    def numpy_memory(t, y):  # no version counter sees this one change
        array[:] = y.numpy()[::-1] * (1, -1)
        return torch.from_numpy(array)

    def inside(t, y):
        scratch = y.clone()
        return scratch.copy_(item(t, y))

    return {f.__name__: f for f in (item, out, view, numpy_memory, inside)}[kind]


KINDS = ["item", "out", "view", "numpy_memory", "inside"]
QUIET = {"no_grad": torch.no_grad, "inference": torch.inference_mode, "grad": torch.enable_grad}


@pytest.mark.parametrize(
    "scheme, kind, quiet",
    [*((s, "item", "no_grad") for s in FIRST), *product(("verlet", "reversible_rk4"), KINDS, QUIET)],
)
def test_one_buffer_for_all_values_is_right(scheme, kind, quiet):
    options = dict(scheme=scheme, h=0.1, steps=12, t_eval=[0.05, 0.4, 0.73, 1.2])
    expected = ode.integrate(_turned, _start(), **options)
    with QUIET[quiet]():
        found = ode.integrate(_in_buffer(kind), _start(), **options)
    assert torch.equal(found.ys, expected.ys) and found.stats.evaluations == expected.stats.evaluations
    back = found.reverse()
    assert back.exact and torch.equal(back.ys, expected.reverse().ys)


def test_one_buffer_for_both_functions_is_right():
    buffer = torch.empty(2, dtype=torch.float64)
    shared = ode.Separable(lambda t, p: buffer.copy_(p), lambda t, q: buffer.copy_(-q))
    own = ode.Separable(lambda t, p: p, lambda t, q: -q)  # which returns its argument
    for scheme in ("verlet", "kahan_li6", "hamiltonian"):
        options = dict(scheme=scheme, h=0.1, steps=9, t_eval=[0.11, 0.9])
        a, b = (ode.integrate(f, (_start(), _start()), **options) for f in (shared, own))
        assert torch.equal(a.ys, b.ys) and torch.equal(a.momenta, b.momenta)
        assert a.reverse().exact and b.reverse().exact


def test_values_kept_without_copies_are_rejected(monkeypatch):
    """Without the copies of stages, of what is served twice, and of slopes, the same comparison fails."""
    expected = ode.integrate(_turned, _start(), scheme="reversible_rk4", h=0.1, steps=12)
    monkeypatch.setattr(torch.Tensor, "clone", lambda self, **_: self)
    found = ode.integrate(_in_buffer("item"), _start(), scheme="reversible_rk4", h=0.1, steps=12)
    assert not torch.equal(found.ys, expected.ys)


def test_a_served_value_is_a_copy():
    """Verlet's last drift of a step and the first of the next share a value; a kick between asks again."""
    served, evaluate = [], Walker.evaluate

    def seen(self, micro, n, x):
        value = evaluate(self, micro, n, x)
        served.append((value, value.clone()))
        return value

    Walker.evaluate = seen
    try:
        bare = ode.methods.SplittingMethod(ode.compositions.get("verlet"), couple=0.0)
        ode.integrate(_in_buffer("item"), _start(), scheme=bare, h=0.1, steps=4)
    finally:
        Walker.evaluate = evaluate
    first = served[::3]  # the drifts at the beginning of a step
    assert all(torch.equal(*pair) for pair in first[1:])


def test_marking_the_argument_does_not_leak():
    def field(t, q):
        with torch.enable_grad():
            q.requires_grad_(True)
            return -torch.autograd.grad((q**2).sum() / 2, q)[0]

    for fmt in (None, revstep.Float(torch.float64)):
        for quiet in (torch.no_grad, torch.enable_grad):
            with quiet():
                y0 = _start()
                run = ode.integrate(field, y0, scheme="verlet", h=0.1, steps=5, state=fmt)
            assert not run.ys.requires_grad and not y0.requires_grad and not run.final[0].requires_grad


@pytest.mark.parametrize("quiet", ["no_grad", "grad"])
@pytest.mark.parametrize("fmt", [None, revstep.Float(torch.float64)])
def test_writing_into_an_argument_is_refused(quiet, fmt):
    kept = []

    def now(t, y):
        return y.mul_(-1.0)

    def later(t, y):
        if kept:
            kept[-1].zero_()
        kept.append(y)
        return -y.clone()

    with QUIET[quiet]():
        with pytest.raises(revstep.UnsupportedError, match="changed its argument in place"):
            ode.integrate(now, _start(), scheme="verlet", h=0.1, steps=5, state=fmt)
        with pytest.raises(revstep.UnsupportedError, match="in place"):
            ode.integrate(later, _start(), scheme="verlet", h=0.1, steps=5, state=fmt)


def test_in_inference_mode_a_write_stays_in_the_fields_copy():
    with torch.inference_mode():
        found = ode.integrate(lambda t, y: y.mul_(-1.0), _start(), scheme="verlet", h=0.1, steps=5)
    assert torch.equal(found.ys, ode.integrate(lambda t, y: -y, _start(), scheme="verlet", h=0.1, steps=5).ys)


# ---- chance ----


def _own_generator():
    generator = torch.Generator().manual_seed(0)
    return lambda t, y: -y + 1e-3 * torch.randn(y.shape, generator=generator, dtype=y.dtype)


def _own_numpy():
    generator = np.random.default_rng(0)
    return lambda t, y: -y + float(generator.standard_normal())


def _counts():
    calls = []
    return lambda t, y: -y * (1 + 1e-9 * (calls.append(t) or len(calls)))


def _running_mean():
    mean = torch.zeros(2, dtype=torch.float64)
    return lambda t, y: -(y - mean.mul_(0.9).add_(y.detach()))


AT_ONCE = {
    "torch": lambda: lambda t, y: -y + torch.randn_like(y),
    "dropout": lambda: lambda t, y: torch.nn.functional.dropout(y, 0.5),
    "numpy": lambda: lambda t, y: -y + float(np.random.standard_normal()),  # noqa: NPY002
    "random": lambda: lambda t, y: -y + random.random(),
    "own generator": _own_generator,
    "own generator of NumPy": _own_numpy,
    "counts its calls": _counts,
    "running mean": _running_mean,
}
LATER = {
    "torch": lambda: lambda t, y: -y + (torch.randn_like(y) if float(t) > 0.3 else 0.0),
    "numpy": lambda: lambda t, y: -y + (float(np.random.rand()) if float(t) > 0.3 else 0.0),  # noqa: NPY002
    "random": lambda: lambda t, y: -y + (random.random() if float(t) > 0.3 else 0.0),
}


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize("scheme", ["midpoint", "verlet", "reversible_rk4"])
@pytest.mark.parametrize("when, kind", [("at once", k) for k in AT_ONCE] + [("later", k) for k in LATER])
def test_chance_is_refused(when, kind, scheme, gradient):
    field = {"at once": AT_ONCE, "later": LATER}[when][kind]()
    said = r"random or keeps hidden state.*draws random numbers.*args="
    with pytest.raises(revstep.UnsupportedError, match=said):
        ode.integrate(field, _start().requires_grad_(gradient), scheme=scheme, h=0.1, steps=6)


def test_chance_in_numpy_fields_and_second_functions_is_refused():
    noisy = AT_ONCE["numpy"]()
    for field, y0 in ((noisy, np.ones(2)), (ode.Separable(lambda t, p: p, noisy), (np.ones(2), np.ones(2)))):
        with pytest.raises(revstep.UnsupportedError, match="random or keeps hidden state"):
            ode.integrate(field, y0, scheme="verlet", h=0.1, steps=5)


def test_checks_that_look_elsewhere_are_rejected(monkeypatch):
    """Without the second question, and without the generators, the fields above pass."""
    monkeypatch.setattr(_evaluations, "same_bits", lambda a, b: True)
    monkeypatch.setattr(_runs.Draws, "moved", lambda self: [])
    for make in (*AT_ONCE.values(), *LATER.values()):
        assert ode.integrate(make(), _start(), scheme="midpoint", h=0.1, steps=6).ys.isfinite().all()


def test_draws_of_others_are_no_chance_of_the_field():
    """Another thread may use the same generators: the run is taken again, and ends in the same bits."""
    asked, drawn = threading.Event(), threading.Event()

    def other():
        asked.wait(10)
        torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
        drawn.set()

    def field(t, y):
        asked.set()
        assert drawn.wait(10)
        return -y

    thread = threading.Thread(target=other)
    thread.start()
    run = ode.integrate(field, _start(), scheme="midpoint", h=0.1, steps=6)
    thread.join()
    assert run.reverse().exact


def test_numbers_drawn_before_are_right():
    noise = torch.randn(2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    field = lambda t, y, noise: -y + noise  # noqa: E731
    run = ode.integrate(field, _start(), scheme="midpoint", h=0.1, steps=6, args=(noise,))
    assert run.reverse().exact


# ---- time ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("scheme", ["midpoint", "verlet", "reversible_rk4"])
def test_time_is_a_float64_scalar_whatever_the_state_is(scheme, shape, dtype):
    seen, h, t0 = (
        [],
        torch.tensor(0.1, dtype=torch.float64, requires_grad=True),
        torch.tensor(1e6, dtype=torch.float64, requires_grad=True),
    )

    def field(t, y):
        seen.append((t.dtype, t.ndim, y.dtype, float(t.detach())))
        return torch.cos(t - 1e6) * y

    run = ode.integrate(field, torch.ones(shape, dtype=dtype), scheme=scheme, h=h, t0=t0, steps=4)
    run.ys[-1].sum().backward()
    assert {s[:3] for s in seen} == {(torch.float64, 0, dtype)} and run.ys.dtype == dtype
    assert h.grad.dtype == t0.grad.dtype == torch.float64
    # y = y0 exp(sin(t) - sin(t0)) with t = t0 + 0.4
    slope = (np.cos(0.4) - 1.0) * float(run.ys[-1].detach().sum())
    assert abs(float(t0.grad) - slope) < 0.05
    # float32 has no time between 1e6 and 1e6 + 0.0625
    assert {round((s[3] - 1e6) * 10, 6) % 0.5 for s in seen} == {0.0}


@pytest.mark.parametrize("value", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_a_tensor_h_gives_the_bits_of_a_number(shape, value):
    """Backward may differentiate h: what it evaluates again must be what the run evaluated."""
    tableau, g = cases.METHODS["reversible_rk4"].tableau, torch.Generator().manual_seed(0)
    x, t = torch.randn(shape, generator=g), torch.tensor(0.0, dtype=torch.float64)
    f = lambda t, x: torch.sin(x.to(value)) * 1.1  # noqa: E731
    a, b = (
        _problem.increment(tableau, f, t, h, x, ()) for h in (0.1, torch.tensor(0.1, dtype=torch.float64))
    )
    assert torch.equal(a, b) and a.dtype == b.dtype


def test_stages_of_another_buffer_are_those_of_the_increment():
    tableau = cases.METHODS["reversible_rk4"].tableau
    t, x = torch.tensor(0.0, dtype=torch.float64), _start()
    a, b = (_problem.increment(tableau, f, t, 0.1, x, ()) for f in (_turned, _in_buffer("item")))
    assert torch.equal(a, b)
