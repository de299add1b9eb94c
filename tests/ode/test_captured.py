"""The loop that replays captured operators: the bits of the loop in Python, forwards, backwards and in the
gradients; what it does not take, by name; and that its checks can fail.
"""

import warnings

import numpy as np
import ode_cases as cases
import pytest
import torch
from torch import nn

import revstep
from revstep import ode
from revstep.errors import FallbackWarning
from revstep.ode import _capture, _replay
from revstep.ode._capture import NotCapturedError

FEW = [
    case
    for case in cases.CASES
    if case[0] in ("midpoint", "blend", "leapfrog", "verlet", "yoshida4", "blanes_moan4", "reversible_rk4")
]


def both(field, y0, parameters=(), **options):
    """``[(solution, [values..., gradients...]), ...]`` by the loop in Python and by the replay."""
    found = []
    for loop in ("python", "captured"):
        parts = y0 if isinstance(y0, tuple) else (y0,)
        own = [p.clone().requires_grad_() for p in parts]
        run = ode.integrate(field, tuple(own) if isinstance(y0, tuple) else own[0], loop=loop, **options)
        values = [x for x in (run.ys, run.velocities, run.momenta) if x is not None]
        total = sum((k + 1) * (v * torch.linspace(0.1, 1.0, v.numel(), dtype=v.dtype).view_as(v)).sum()
                    for k, v in enumerate(values))  # fmt: skip
        wanted = [*own, *parameters]
        found.append((run, [*values, *torch.autograd.grad(total, wanted, allow_unused=True)]))
    return found


def assert_same(found):
    (plain, a), (replayed, b) = found
    assert plain.stats.loop == "python" and replayed.stats.loop == "captured"
    assert replayed.stats.fallback is None
    for x, y in zip(a, b, strict=True):
        assert (x is None and y is None) or torch.equal(x, y)
    about = [run.stats.to_dict() | {"loop": ""} for run in (plain, replayed)]
    assert about[0] == about[1]


@pytest.mark.filterwarnings("error::revstep.errors.FallbackWarning")
@pytest.mark.parametrize("state", cases.STATES)
@pytest.mark.parametrize("name, equation", FEW)
def test_bits_are_those_of_the_loop_in_python(name, equation, state):
    field, y0 = cases.problem(equation, cases.tensors())
    modules = [f for f in (field, *getattr(field, "functions", tuple)()) if isinstance(f, nn.Module)]
    parameters = [p for m in modules for p in m.parameters()]
    for steps in (7, 70):  # fewer micro-steps than a group, and more
        options = {"scheme": name, "h": 0.02, "steps": steps, "save_every": 5, "state": cases.STATES[state]}
        found = both(field, y0, parameters, **options)
        assert_same(found)
        if state != "float64":
            assert found[1][0].reverse().exact


def test_arguments_are_differentiated_and_not_baked_in():
    y = cases.tensors()[0]
    for seed in (0, 1):
        w = (1.0 + cases.tensors(seed=seed)[1]).requires_grad_()
        field = cases.Driven()
        for scheme in ("midpoint", "reversible_rk4"):
            assert_same(both(field, y, [w, *field.parameters()], scheme=scheme, h=0.05, steps=20, args=(w,)))


def test_no_gradient_and_float32_and_units():
    net = cases.network(dtype=torch.float32)
    y = cases.tensors(dtype=torch.float32)[0] * torch.tensor([1.0, 300.0, 1e-3])
    runs = []
    with torch.no_grad():
        for loop in ("python", "captured"):
            runs.append(ode.integrate(net, y, scheme="yoshida4", h=0.02, steps=40, loop=loop))
    assert torch.equal(runs[0].ys, runs[1].ys) and runs[1].stats.loop == "captured"
    assert runs[1].reverse().exact
    assert_same(both(net, y, list(net.parameters()), scheme="midpoint", h=0.02, steps=40))


# ---- The field's Python runs a few times, and what was captured is used again while nothing changed ----


class Counted(nn.Module):
    """Counts its calls; what it reads can be changed."""

    def __init__(self):
        super().__init__()
        self.net, self.factor, self.calls = cases.network(), 1.0, [0]
        self.register_buffer("shift", torch.zeros(3, dtype=torch.float64))

    def forward(self, t, y):
        self.calls[0] += 1
        return self.net(y) * self.factor + self.shift * torch.where(t > 0.5, 1.0, 0.0)


def test_python_is_left_out():
    field, y = Counted(), cases.tensors()[0]
    assert_same(both(field, y, list(field.parameters()), scheme="midpoint", h=0.01, steps=100))
    field.calls[0] = 0
    ode.integrate(field, y, scheme="midpoint", h=0.01, steps=100, loop="captured").ys[-1].sum().backward()
    assert 0 < field.calls[0] < 20


CHANGES = {
    "a number": lambda f: setattr(f, "factor", 0.5),
    "a weight in place": lambda f: f.net[0].weight.data.mul_(0.5),
    "a weight exchanged": lambda f: setattr(f.net[0], "weight", nn.Parameter(f.net[0].weight.detach() * 0.5)),
    "a buffer that acts late": lambda f: setattr(f, "shift", torch.ones(3, dtype=torch.float64)),
    "a layer": lambda f: setattr(f.net, "1", nn.Sigmoid()),
    "a weight frozen": lambda f: f.net[2].bias.requires_grad_(False),
    "a hook": lambda f: f.net.register_forward_hook(lambda m, a, out: out * 0.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_between_runs_is_seen(change):
    class Field(Counted):  # without the list that counts, which changes in each call
        def forward(self, t, y):
            return self.net(y) * self.factor + self.shift * torch.where(t > 0.5, 1.0, 0.0)

    field, y = Field(), cases.tensors()[0]

    def weights():
        return [p for p in field.parameters() if p.requires_grad]

    for scheme in ("midpoint", "reversible_rk4"):
        options = {"scheme": scheme, "h": 0.05, "steps": 20}
        before = both(field, y, weights(), **options)
        assert_same(before)
    CHANGES[change](field)
    after = both(field, y, weights(), **options)
    assert_same(after)
    assert change == "a weight frozen" or not torch.equal(before[1][1][0], after[1][1][0])


def test_one_capture_serves_many_runs(monkeypatch):
    traced = []
    monkeypatch.setattr(_replay, "capture", lambda *a: traced.append(1) or _capture.capture(*a))
    field, y = cases.Driven(), cases.tensors()[0]
    optimizer = torch.optim.SGD(field.parameters(), lr=0.1)
    for _ in range(4):
        optimizer.zero_grad()
        ode.integrate(field, y, h=0.05, steps=20, loop="captured").ys[-1].square().sum().backward()
        optimizer.step()
    assert len(traced) == 2  # both signs of the increment
    factor = 2.0
    for _ in range(2):
        ode.integrate(lambda t, y: factor * y, y, scheme="midpoint", h=0.05, steps=5, loop="captured")
    assert len(traced) == 4  # a function of its own in each run


def test_a_closure_that_changes_is_seen():
    factor, y = 1.0, cases.tensors()[0]

    def field(t, y):
        return torch.sin(y) * torch.where(t > 0.5, factor, 1.0)

    for factor in (1.0, 2.0):  # noqa: B007 - the closure reads it
        assert_same(both(field, y, scheme="midpoint", h=0.05, steps=20))


# ---- What is not taken, by name ----


def _inplace(t, y):
    out = y * 2
    out += 1
    return out


def _late(t, y):
    return y if float(t) < 0.1 else -y


def _mine(t, y):
    return torch.from_numpy(np.sin(y.detach().numpy())) * 1.0


REFUSED = {
    "a branch on the time": (_late, {}, "cannot trace it"),
    "in place": (_inplace, {}, "writes in place"),
    "NumPy inside": (_mine, {}, "cannot trace it"),
    "a branch on the state": (lambda t, y: y if y.detach().sum() > 0 else -y, {}, "cannot trace it"),
    "h": (torch.nn.Tanh(), {"h": torch.tensor(0.1, requires_grad=True)}, "gradient of h or t0"),
    "dropped members": (torch.nn.Tanh(), {"on_failure": "drop"}, "on_failure='drop'"),
}


@pytest.mark.parametrize("which", REFUSED)
def test_what_cannot_be_captured_falls_back_by_name(which):
    field, options, words = REFUSED[which]
    options = {"h": 0.1, "steps": 5, "scheme": "midpoint"} | options
    y = cases.tensors()[0]
    plain = ode.integrate(field, y, loop="python", **options)
    with pytest.warns(FallbackWarning, match=words):
        run = ode.integrate(field, y, loop="captured", **options)
    assert run.stats.loop == "python" and words in run.stats.fallback
    assert torch.equal(plain.ys, run.ys)


def test_arrays_autocast_and_inference_mode_fall_back():
    with pytest.warns(FallbackWarning, match="y0 is a NumPy array"):
        ode.integrate(lambda t, y: -y, [1.0, 2.0], h=0.1, steps=3, loop="captured")
    net, y = cases.network(dtype=torch.float32), cases.tensors(dtype=torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16), pytest.warns(FallbackWarning, match="autocast is on"):
        ode.integrate(net, y, h=0.1, steps=3, loop="captured")
    with torch.inference_mode(), pytest.warns(FallbackWarning, match="inference mode"):
        ode.integrate(net, y, h=0.1, steps=3, loop="captured")


def test_a_random_field_is_refused_as_in_python():
    for field in (lambda t, y: y + torch.rand_like(y), lambda t, y: y * np.random.default_rng().random()):
        for loop in ("python", "captured"):
            with pytest.raises(revstep.errors.UnsupportedError, match="random"):
                ode.integrate(field, cases.tensors()[0], scheme="midpoint", h=0.1, steps=3, loop=loop)


def test_a_history_from_outside_is_refused_as_in_python():
    w = torch.ones(3, dtype=torch.float64, requires_grad=True) * 2
    for loop in ("python", "captured"):
        with pytest.raises(revstep.errors.UnsupportedError, match="args="):
            ode.integrate(lambda t, y: y * w, cases.tensors()[0], h=0.1, steps=3, loop=loop)


def test_overflow_is_told_as_in_python():
    y = torch.tensor([[0.5, 1.0], [2.0, 1.0]], dtype=torch.float64)
    said = {}
    for scheme in ("midpoint", "reversible_rk4", "yoshida4"):
        for loop in ("python", "captured"):
            with pytest.raises(revstep.StateOverflowError) as caught:
                ode.integrate(lambda t, y: y**3, y, scheme=scheme, h=0.05, steps=200, scale=1.0, loop=loop)
            error = caught.value
            said[loop] = str(error), error.layer, error.index, error.largest
        assert said["python"] == said["captured"]


def test_an_operator_that_fails_out_of_range_is_told_as_overflow():
    table = torch.linspace(1.0, 2.0, 300, dtype=torch.float64)

    def field(t, y):  # no index for values out of range
        return y * table[(y.abs() * 2).long()]

    y = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    said = {}
    for loop in ("python", "captured"):
        with pytest.raises((revstep.StateOverflowError, IndexError)) as caught:
            ode.integrate(field, y, scheme="midpoint", h=0.1, steps=200, scale=1.0, loop=loop)
        said[loop] = str(caught.value)
    assert said["python"] == said["captured"]


# ---- Checks that are seen to fail ----


def _broken(monkeypatch, change):
    """Captures whose parts ``change(found)`` exchanged."""
    import dataclasses

    built = _capture._built
    monkeypatch.setattr(
        _capture, "_built", lambda *a: dataclasses.replace(found := built(*a), **change(found))
    )


def _run(**options):
    field, y = cases.Driven(), cases.tensors()[0]
    return ode.integrate(field, y, scheme="midpoint", h=0.05, steps=20, loop="captured", **options)


def test_other_values_are_seen_at_once(monkeypatch):
    _broken(monkeypatch, lambda c: {"value": lambda *a: c.value(*a) * (1 + 2.0**-52)})
    with pytest.warns(FallbackWarning, match="other values than the field"):
        _run()


def test_other_gradients_are_seen_at_once(monkeypatch):
    def off(c):
        return {"joint": lambda *a: (lambda v, g, *rest: (v, g * (1 + 2.0**-52), *rest))(*c.joint(*a))}

    _broken(monkeypatch, off)
    with pytest.warns(FallbackWarning, match="other gradients than autograd"):
        _run()


def test_a_way_back_with_other_values_is_seen(monkeypatch):
    run = _run()
    joint = _replay.Replays.joint

    def off(self, walker, micro, n, x, cotangent):
        value, *rest = joint(self, walker, micro, n, x, cotangent)
        return (value + 2.0**-40 if n == 7 else value, *rest)

    monkeypatch.setattr(_replay.Replays, "joint", off)
    with pytest.raises(revstep.errors.ReconstructionError, match="rebuilt at step 0"):
        run.ys[-1].sum().backward()


def test_weights_that_change_before_backward_are_seen():
    field, y = cases.Driven(), cases.tensors()[0]
    run = ode.integrate(field, y, scheme="midpoint", h=0.05, steps=20, loop="captured")
    with torch.no_grad():
        field.net[0].weight.mul_(1.001)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        run.ys[-1].sum().backward()
    buffered = Counted()
    run = ode.integrate(buffered, y, scheme="midpoint", h=0.05, steps=20, loop="captured")
    buffered.shift += 1.0  # autograd does not watch it
    with pytest.raises(revstep.errors.ReconstructionError):
        run.ys[-1].sum().backward()


def test_statistics_that_nobody_reads_would_be_missed(monkeypatch):
    monkeypatch.setattr(_replay.Replay, "look", lambda self: setattr(self, "_filled", 0))
    y = torch.tensor([[0.5, 1.0], [2.0, 1.0]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ode.integrate(lambda t, y: y**3, y, scheme="midpoint", h=0.05, steps=100, scale=1.0, loop="captured")


def test_an_explanation_that_finds_nothing_says_so(monkeypatch):
    step = _replay.Replay._row

    def bad(self):
        row = step(self)
        self._rows[:, 1] = 1
        return row

    monkeypatch.setattr(_replay.Replay, "_row", bad)
    monkeypatch.setattr(_replay.Replay, "_moved", lambda self, *a, **k: self._rows[:, 1].fill_(1))
    with pytest.raises(revstep.errors.UnsupportedError, match="where the field itself does not"):
        _run()


def test_not_captured_is_an_error_of_ours():
    assert issubclass(NotCapturedError, revstep.errors.RevstepError)
