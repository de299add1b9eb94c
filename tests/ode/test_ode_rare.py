"""Rare ends of an integration: values beside what is usual, and the answers that they get."""

import dataclasses
import functools
import pickle
import types

import numpy as np
import ode_cases as cases
import pytest
import torch
from torch import fx, nn

import revstep
from revstep import ConfigError, UnsupportedError, ode
from revstep.errors import FallbackWarning
from revstep.ode import _capture, _compiled, _problem, _replay, _signature, _starts, _units
from revstep.ode._capture import NotCapturedError
from revstep.ode.methods.twostep import TwoStep
from revstep.schemes import MidpointBlend


def decay(t, y):
    return -y


# ---- Starts, and runs that go on ----


def test_a_start_beside_a_run_says_numpy_or_torch():
    before = ode.integrate(decay, np.ones(3), h=0.1, steps=2)
    after = ode.integrate(decay, torch.zeros(3), start=before.final, steps=2)
    whole = ode.integrate(decay, np.ones(3), h=0.1, steps=4)
    assert isinstance(after.ys, torch.Tensor) and np.array_equal(after.ys[-1].numpy(), whole.ys[-1])


def test_a_run_goes_on_over_an_interval():
    before = ode.integrate(decay, np.ones(3), h=0.25, steps=2)
    after = ode.integrate(decay, None, start=before.final, t_span=(0.5, 1.5))
    assert after.ts.tolist() == [0.5, 1.5] and after.stats.steps == 4
    with pytest.raises(ConfigError, match="leave t0 out"):
        ode.integrate(decay, None, start=before.final, t_span=(0.25, 1.5))


def test_equal_bytes_of_two_dtypes_are_other_values():
    a = torch.zeros(3)
    assert _starts.same_bits(a, a.clone())
    assert not _starts.same_bits(a, torch.zeros(3, dtype=torch.int32))
    assert not _starts.same_bits(a, torch.zeros(3, 1))


class Plenty(nn.Module):
    """Takes whatever it is given."""

    def forward(self, *given):
        return -given[-1]


class Text(nn.Module):
    forward = "no function at all"


class Bare(nn.Module):
    def forward(self):
        return None


class Alone(nn.Module):
    def forward(self, y):
        return -y


def test_a_module_is_called_without_the_time_where_it_has_no_place_for_it():
    alone = _starts._takes_the_state_alone
    assert [alone(m(), 0) for m in (Alone, Plenty, Bare, Text)] == [True, False, False, False]
    run = ode.integrate(Plenty(), torch.ones(2), h=0.1, steps=3)
    assert torch.equal(run.ys, ode.integrate(decay, torch.ones(2), h=0.1, steps=3).ys)


def test_a_field_that_returns_no_tensor():
    with pytest.raises(ConfigError, match=r"the field returned str, expected a tensor .* shape \(2,\)"):
        ode.integrate(lambda t, y: "down", torch.ones(2), h=0.1, steps=1)


def test_steps_are_a_whole_number():
    for wrong in (True, -1, 2.0):
        with pytest.raises(ConfigError, match="expected a non-negative integer"):
            ode.available()["midpoint"].check("first", wrong)


def test_parts_on_two_devices():
    parts = torch.ones(2), torch.ones(2, device="meta")
    with pytest.raises(ConfigError, match="the parts of y0 are on cpu, meta, expected one device"):
        ode.odeint(lambda t, y: y, parts, torch.tensor([0.0, 1.0]), method="rk4", options={"step_size": 0.5})


def test_the_scale_of_no_elements_is_one():
    assert _units.one(torch.zeros(0)) == 1.0
    assert _units.one(torch.tensor([2.0, 2.0])) == 2.0 and _units.one(torch.tensor([2.0, 4.0])) is None


def test_a_complex_state_has_a_scale_a_component():
    y0 = np.array([1.0 + 0j, 1e6 + 0j])
    run = ode.integrate(lambda t, y: 1j * y, y0, h=0.01, steps=10, scale=np.array([2.0**3, 2.0**23]))
    assert np.abs(run.ys[-1] / y0 - np.exp(0.1j)).max() < 1e-4
    with pytest.raises(ConfigError, match=r"scale has shape \(3,\), which does not broadcast to.*\(2,\)"):
        ode.integrate(lambda t, y: 1j * y, y0, h=0.01, steps=10, scale=np.full(3, 8.0))


# ---- Energies ----


def test_an_error_inside_an_energy_is_its_own():
    wrong = torch.ones(5, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="size"):
        ode.integrate(
            ode.FromEnergies(lambda p: p @ p / 2, lambda q: q @ wrong),
            (np.ones(2), np.ones(2)), h=0.1, steps=1,
        )  # fmt: skip


def test_an_energy_may_be_flat_up_to_a_wall():
    """At the start it is a constant, close by it is not, and nothing says that it hides its argument."""

    def wall(q):
        return ((q - 1.0) ** 2).sum() if bool((q > 1.0).any()) else torch.zeros((), dtype=q.dtype)

    energies = ode.FromEnergies(lambda p: (p**2).sum() / 2, wall)
    run = ode.integrate(energies, (np.array([1.0]), np.array([-1.0])), h=0.125, steps=8)
    assert abs(run.ys[-1][0]) < 1e-6


# ---- Replayed loops ----


def test_a_field_that_nothing_differentiable_acts_on_is_not_captured():
    with pytest.warns(FallbackWarning, match="nothing that requires a gradient acts on its value"):
        run = ode.integrate(
            lambda t, y: torch.ones_like(y), torch.ones(2, requires_grad=True),
            h=0.1, steps=2, scheme="midpoint", loop="captured",
        )  # fmt: skip
    run.ys[-1].sum().backward()
    assert run.stats.loop == "python"


def test_what_is_no_operator_of_torch_is_not_captured():
    graph = fx.Graph()
    graph.call_function(len, (graph.placeholder("x"),))
    with pytest.raises(NotCapturedError, match="it calls <built-in function len>, which is no operator"):
        _capture._check(graph)


def test_a_default_device_that_was_taken_back():
    """torch 2.9 cannot say which there is, afterwards."""
    with torch.device("meta"):
        assert _replay._default_device() == torch.device("meta")
    torch.set_default_device("cpu")
    torch.set_default_device(None)
    y = torch.ones(2, 3, dtype=torch.float64)
    run = ode.integrate(cases.network(), y, h=0.1, steps=2, scheme="midpoint", loop="captured")
    vars(torch._GLOBAL_DEVICE_CONTEXT).pop("device_context", None)  # for the tests after this one
    assert run.stats.loop == "captured"


def test_captures_of_a_device_without_kernels_are_refused():
    problem = types.SimpleNamespace(functions=())
    assert _replay.refusal(problem, torch.device("cpu"), False, False) is None
    assert _replay.refusal(problem, torch.device("meta"), False, False) == "the state is on meta"


def test_one_function_keeps_its_last_captures(monkeypatch):
    monkeypatch.setattr(_replay, "_PER_FUNCTION", 2)
    net = cases.network()
    for width in (1, 2, 3, 4):
        y = torch.ones(width, 3, dtype=torch.float64)
        ode.integrate(net, y, h=0.1, steps=2, scheme="midpoint", loop="captured")
    kept = [key[2][0][0] for key in _replay._STORE[net]]
    assert kept == [(3, 3), (4, 3)]


class Slotted:
    """Its attributes are in no dictionary, so nobody sees them change, and nothing refers to it weakly."""

    __slots__ = ("rate",)

    def __init__(self, rate):
        self.rate = rate

    def __call__(self, t, y):
        return self.rate * y


@dataclasses.dataclass
class Compared:
    """Equal to another of the same numbers, and so without a hash."""

    rate: float

    def __call__(self, t, y):
        return self.rate * y


@pytest.mark.parametrize("kind", [Slotted, Compared])
def test_captures_of_what_cannot_be_seen_are_not_kept(kind):
    f = kind(-1.0)
    wrapped = types.SimpleNamespace(without_time=False, form=types.SimpleNamespace(complex=False))
    assert _replay._place(f, wrapped, ()) == (None, None)
    runs = []
    for f.rate in (-1.0, -2.0):
        y = torch.ones(2, dtype=torch.float64)
        runs.append(ode.integrate(f, y, h=0.1, steps=3, scheme="midpoint", loop="captured"))
    assert [run.stats.loop for run in runs] == ["captured", "captured"]
    assert runs[1].ys[-1, 0] < runs[0].ys[-1, 0]


def test_a_group_has_room_for_a_step_of_many_parts(monkeypatch):
    plain = ode.integrate(cases.network(), cases.tensors()[0], h=0.1, steps=3, scheme="kahan_li8")
    monkeypatch.setattr(_replay, "GROUP", 2)
    run = ode.integrate(
        cases.network(), cases.tensors()[0], h=0.1, steps=3, scheme="kahan_li8", loop="captured"
    )
    assert run.stats.loop == "captured" and torch.equal(run.ys, plain.ys)


def test_gradients_of_states_that_lie_otherwise_in_memory():
    """Operators are captured for dense cotangents."""
    net, found = cases.network(width=2), []
    for loop in ("python", "captured"):
        y = torch.ones(2, 3, dtype=torch.float64).T.detach().requires_grad_()
        run = ode.integrate(net, y, h=0.1, steps=3, scheme="midpoint", loop=loop)
        weights = torch.arange(6.0, dtype=torch.float64).view(2, 3).T
        found.append(torch.autograd.grad((run.ys[-1] * weights).sum(), [y, *net.parameters()]))
        assert run.stats.loop == loop
    assert all(torch.equal(a, b) for a, b in zip(*found))


# ---- Signatures of functions ----


def test_sets_of_numbers_are_seen():
    chosen = {1, 2}
    f = functools.partial(lambda t, y, among: y * len(among), among=chosen)
    before = _signature.signature(f)
    assert _signature.signature(f) == before
    chosen.add(3)
    assert _signature.signature(f) != before


def test_a_cell_that_is_still_empty():
    def outer():
        def inner(t, y):
            return later * y

        before = _signature.signature(inner)
        later = 2.0
        return before, _signature.signature(inner)

    before, after = outer()
    assert before != after


SLOPE = 1.0


def test_names_inside_of_functions_inside_are_seen(monkeypatch):
    def f(t, y):
        return (lambda x: SLOPE * x)(y)

    before = _signature.signature(f)
    monkeypatch.setitem(globals(), "SLOPE", 2.0)
    assert _signature.signature(f) != before


# ---- What a solution says ----


def test_a_run_of_no_steps_looked_at_nothing():
    run = ode.integrate(decay, np.ones(2), h=0.1, steps=0)
    assert "; no step made a state other than zero." in run.summary()
    assert "No increment was looked at." in run.summary() and "floats" not in run.summary()


def test_states_that_stay_at_zero_are_no_floats():
    """They have no largest, so that any number of them fits."""
    run = ode.integrate(decay, np.zeros(2), h=0.1, steps=3, scheme="midpoint")
    assert "no step made a state other than zero" in run.summary() and run.reverse().exact
    state = revstep.Float(torch.float64)
    run = ode.integrate(decay, np.ones(2), h=0.1, steps=3, scheme="midpoint", state=state)
    assert "The states are floats" in run.summary()


def test_the_energy_of_nobody():
    field = ode.fields.Pendulum(equation="second")
    run = ode.integrate(field, (np.zeros((0, 1)), np.zeros((0, 1))), h=0.1, steps=3)
    assert run.ys.shape == (2, 0, 1) and "of no member" in run.summary()
    assert run.reverse().exact
    options = {"scheme": "blend", "h": 0.1, "steps": 3, "loop": "compiled"}  # which keeps carries, here none
    assert ode.integrate(ode.fields.VanDerPol(mu=1.0), np.zeros((0, 2)), **options).reverse().exact


class Unpicklable(ode.fields.Harmonic):
    def __reduce__(self):
        raise TypeError("it holds a file")


def test_integrals_travel_with_a_solution_whose_field_cannot():
    run = ode.integrate(Unpicklable(omega=2.0), (np.array([1.0]), np.array([0.0])), h=0.01, steps=5)
    known = run.integrals
    again = pickle.loads(pickle.dumps(run))
    assert known and again.integrals.keys() == known.keys()
    assert all(np.array_equal(again.integrals[name], known[name]) for name in known)


# ---- The loops ----


def test_a_field_that_writes_into_an_earlier_argument():
    """A field sees the states themselves, and may keep them: who writes into one is told."""
    kept = []

    def f(t, y):
        kept.append(y)
        return -y

    def write(done, steps):
        kept[-1].add_(1.0)

    y0 = torch.ones(2, dtype=torch.float64)
    with pytest.raises(
        UnsupportedError, match="changed an argument of an earlier call in place, before step"
    ):
        ode.integrate(f, y0, h=0.1, steps=6, scheme="midpoint", loop="python", progress=write)


def test_times_held_inside_keep_their_derivative():
    t = torch.tensor(1.0 + 2.0**-52, dtype=torch.float64, requires_grad=True)
    held = _problem._inside(t, (0.0, 1.0))
    assert held.item() == 1.0
    held.backward()
    assert t.grad.item() == 1.0
    assert _problem._inside(t.detach(), (0.0, 1.0)).item() == 1.0


def test_more_programs_than_are_kept(monkeypatch):
    """A scheme that draws its coefficients has a program a step; those that are through are let go."""
    field, y0 = ode.fields.VanDerPol(mu=1.0), np.array([2.0, 0.0])
    options = {"scheme": "midpoint_blend", "h": 0.01, "steps": 40}
    whole = ode.integrate(field, y0, loop="compiled", **options)
    monkeypatch.setattr(_compiled, "MOST", 4)
    kept, rows = [], _compiled._Call._rows
    monkeypatch.setattr(
        _compiled._Call, "_rows", lambda self, n: (kept.append(len(self.known)), rows(self, n))[1]
    )
    run = ode.integrate(field, y0, loop="compiled", **options)
    assert np.array_equal(run.ys, whole.ys) and run.reverse().exact and max(kept) == 5


def test_progress_is_told_where_two_copies_are_watched():
    told = []
    ode.integrate(
        ode.fields.VanDerPol(mu=1.0), np.array([2.0, 0.0]), scheme="reversible_rk4", h=0.01, steps=50,
        loop="compiled", progress=lambda done, steps: told.append((done, steps)),
    )  # fmt: skip
    assert told and told[-1] == (50, 50)


def test_a_way_back_on_floats_that_ends_in_no_number():
    asked = []

    def f(t, y):
        asked.append(t)
        return -y if len(asked) < 12 else y * float("nan")

    state = revstep.Float(torch.float64)
    run = ode.integrate(f, np.ones(1), h=0.1, steps=8, scheme="midpoint", state=state, loop="python")
    assert len(asked) < 12
    with pytest.raises(
        revstep.StateOverflowError, match="rounding errors grew on the way back, or the field"
    ):
        run.reverse()


def test_an_explanation_on_the_way_back_that_finds_nothing_says_so(monkeypatch):
    y0 = torch.ones(2, dtype=torch.float64)
    run = ode.integrate(cases.network(width=2), y0, h=0.1, steps=3, scheme="midpoint", loop="captured")
    monkeypatch.setattr(_replay.Replay, "_moved", lambda self, *a, **k: self._rows[:, 1].fill_(1))
    with pytest.raises(UnsupportedError, match="where the field itself does not"):
        run.reverse()


def test_a_step_does_not_read_the_numbers_of_all_steps(monkeypatch):
    """A run of n steps would read n * n of them."""
    made, init = [], MidpointBlend.__post_init__
    monkeypatch.setattr(MidpointBlend, "__post_init__", lambda self: (made.append(1), init(self))[1])
    scheme = MidpointBlend(a=tuple(np.linspace(0.6, 1.0, 60)))
    run = ode.integrate(decay, np.ones(1), scheme=TwoStep(scheme), h=0.01, steps=60, loop="python")
    assert run.stats.steps == 60 and len(made) < 10
