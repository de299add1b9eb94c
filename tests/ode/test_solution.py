"""Solutions after the run: copies, pickles, process pools, words and pictures."""

import concurrent.futures
import copy
import ctypes
import io
import multiprocessing
import pickle

import numpy as np
import pytest
import torch

import revstep
from revstep import ode
from revstep.ode import _solution
from revstep.ode._functions import CFUNCTYPE

ORBIT = np.array([0.9, 0.0]), np.array([0.0, 1.1])


def decay(t, y):
    return -y


def kinetic(p):
    return (p * p).sum(-1) / 2


@CFUNCTYPE
def spring(t, x, out, n, user):
    for i in range(n):
        out[i] = -x[i]


def orbit(**options):
    return ode.integrate(ode.fields.Kepler(), ORBIT, h=0.01, steps=60, save_every=20, **options)


def _with_graph():
    y0 = torch.ones(2, dtype=torch.float64, requires_grad=True)
    return ode.integrate(decay, y0, scheme="midpoint", h=0.01, steps=10)


MADE = {
    "compiled": orbit,
    "compiled, carries": lambda: ode.integrate(
        ode.fields.LotkaVolterra(), np.array([1.2, 0.9]), h=0.05, steps=40
    ),
    "on tensors": lambda: orbit(loop="python"),
    "reversed": lambda: orbit().reverse(),
    "to_numpy": lambda: orbit().to_numpy(),
    "function": lambda: ode.integrate(decay, np.ones(2), scheme="midpoint", h=0.01, steps=10),
    "lambda": lambda: ode.integrate(lambda t, y: -y, np.ones(2), h=0.01, steps=10),
    "closure, torch": lambda: (lambda k: ode.integrate(lambda t, y: -k * y, torch.ones(2), h=0.01, steps=10))(
        2.0
    ),
    "complex": lambda: ode.integrate(lambda t, y: 1j * y, np.ones(2, complex), h=0.01, steps=10),
    "energies": lambda: ode.integrate(
        ode.FromEnergies(kinetic, kinetic), (torch.ones(1), torch.ones(1)), h=0.01, steps=9
    ),
    "by address": lambda: ode.integrate(
        ode.CompiledField(spring, equation="second", dim=2), ORBIT, h=0.01, steps=9
    ),
    "with a graph": _with_graph,
    "units of components": lambda: ode.integrate(decay, np.array([1.0, 1e-30]), h=0.01, steps=10),
}
WAYS = {
    "pickle": lambda x: pickle.loads(pickle.dumps(x)),
    "deepcopy": copy.deepcopy,
    "torch.save": lambda x: _saved(x),
}


def _saved(x):
    buffer = io.BytesIO()
    torch.save(x, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def _same(a, b):
    for name in ("ts", "ys", "velocities", "momenta", "energy"):
        x, y = (getattr(s, name) for s in (a, b))
        x, y = (v.detach() if isinstance(v, torch.Tensor) else v for v in (x, y))
        if (x is None) != (y is None) or (x is not None and not np.array_equal(x, y)):
            return False
    pairs = zip((*a.start, *a.final), (*b.start, *b.final))
    return a.stats == b.stats and a.exact == b.exact and all(torch.equal(x, y) for x, y in pairs)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", MADE)
def test_copies_are_the_same_and_go_back(kind, way):
    made = MADE[kind]()
    there = WAYS[way](made)
    assert _same(made, there) and repr(made) == repr(there)
    if made.exact is None:
        back, again = made.reverse(), there.reverse()
        assert back.exact and again.exact and _same(back, again)


def test_what_cannot_be_pickled_travels_as_data(monkeypatch):
    there = WAYS["pickle"](MADE["lambda"]())
    assert there._field is None and isinstance(there._reverse, _solution.Undone)
    kept = WAYS["pickle"](orbit())
    assert kept._field == ode.fields.Kepler() and not isinstance(kept._reverse, _solution.Undone)
    # The mutant: without the data there is no way back.
    monkeypatch.setattr(_solution, "Undone", lambda s: None)
    with pytest.raises(revstep.ConfigError, match="itself a reversed one"):
        WAYS["pickle"](MADE["lambda"]()).reverse()


def test_through_a_process_pool():
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        there = pool.submit(orbit).result(timeout=200)
    assert _same(there, orbit()) and there.reverse().exact


def test_an_address_is_not_taken_elsewhere():
    native = ode.CompiledField(spring, equation="second", dim=2).compiled()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(native)
    assert ctypes.sizeof(ctypes.c_void_p) == 8


@pytest.mark.parametrize("kind", MADE)
def test_printed_in_five_lines(kind):
    text = repr(MADE[kind]()).splitlines()
    assert len(text) == 5 and [line.split()[0] for line in text[1:]] == ["times", "steps", "energy", "exact"]


def test_the_summary_says_what_the_grid_did():
    fine = orbit().summary()
    assert (
        "held in units of 2**0, 2**1" in fine
        and "rounded to zero; the largest of the least component has" in fine
    )
    copies = MADE["compiled, carries"]().summary()
    assert "two copies of y were at most" in copies and "bytes of carries" in copies
    floats = orbit(state=revstep.Float(torch.float64)).summary()
    assert "not exact" in floats and "rounded to zero" not in floats
    assert "bytes are kept for backward" in _with_graph().summary()


@pytest.mark.parametrize(
    "scheme, bits", [("midpoint", 0), ("reversible_rk4", 1), ("blend", 2), ("verlet", 2)]
)
def test_the_summary_says_whether_memory_grows_with_the_steps(scheme, bits):
    y0 = torch.ones(64, dtype=torch.float64, requires_grad=True)
    few, many = (
        ode.integrate(lambda t, y: -y, y0, scheme=scheme, h=1e-3, steps=steps) for steps in (64, 128)
    )
    grown = many.stats.bytes_saved - few.stats.bytes_saved
    assert grown == many.stats.carry_bytes - few.stats.carry_bytes and (grown > 0) == (bits > 0)
    assert ("carries among them, which grow" in many.summary()) == (bits > 0)
    assert ("whatever the number of steps" in many.summary()) == (bits == 0)


@pytest.mark.parametrize("what", ["components", "energy", "phase"])
def test_pictures_are_on_the_current_figure(what, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.close("all")
    axes = orbit().plot(what)
    assert axes.figure is pyplot.gcf() and len(axes.get_lines()) > 1
    blank, drawn = tmp_path / "blank.png", tmp_path / "drawn.png"
    pyplot.savefig(drawn)
    pyplot.close("all")
    pyplot.figure()
    pyplot.savefig(blank)
    assert drawn.read_bytes() != blank.read_bytes()
    own = pyplot.figure().subplots()
    assert orbit().plot(what, ax=own) is own
    pyplot.close("all")


def test_pictures_that_cannot_be_drawn_say_why():
    pytest.importorskip("matplotlib")
    with pytest.raises(revstep.ConfigError, match="expected one of 'components', 'energy', 'phase'"):
        orbit().plot("entropy")
    single = ode.integrate(decay, np.ones(1), h=0.1, steps=2)
    for what in ("energy", "phase"):
        with pytest.raises(revstep.ConfigError, match=r"plot\('" + what):
            single.plot(what)
