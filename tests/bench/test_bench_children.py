"""What processes of their own run for the benchmarks, run here: the steps whose memory they count, and the
integrations that are timed beside another build's.
"""

import gc
import io
import json
import sys
from dataclasses import asdict

import pytest
import torch

import revstep
from revstep_lab.bench import peaks, runs_child
from revstep_lab.cases import _builds, keep, peers
from revstep_lab.cases import compile as compiled
from revstep_lab.cases.ode import OdeCase
from revstep_lab.cases.trunk import TrunkCase

CASE = TrunkCase(layers=4, width=16, heads=2, batch=2, length=16)
RUNS = {"loop_steps": 300, "pendulums": 2, "sample": 1, "depths": (2, 4, 8), "batch": 2, "width": 2}


# ---- memory ----


def test_rows_of_keep_carry_their_memory(monkeypatch):
    counted = {"plain": 80, "keep=0": 10, "keep=1": 30, "keep=2": 20, "keep=4": 80}

    def children(steps, case, names):
        assert steps is keep.steps and case is CASE
        return {name: {"kept": counted[name], "peak": 100} for name in names}

    monkeypatch.setattr(keep, "in_children", children)
    found = keep.run_keep(CASE, 1)
    assert {row["name"]: row["memory"]["kept"] for row in found["measurements"]} == counted
    (goal,) = (g for g in found["goals"] if g["what"] == "bytes kept grow with keep")
    assert goal["values"] == [10, 30, 20, 80] and not goal["met"]


@pytest.mark.parametrize("name", ["plain", "checkpoint", "reversible midpoint"])
def test_a_child_takes_the_step_of_its_row(name):
    """Of all trunks of the case it is told, by the bytes that are kept for its backward pass."""
    step, small, forget = peers.steps(CASE, name)
    found = peaks.by_allocator(step)
    state = 4 * CASE.batch * CASE.length * CASE.width
    least = {"plain": 10 * CASE.layers, "checkpoint": CASE.layers, "reversible midpoint": 2}[name]
    most = {"plain": 40 * CASE.layers, "checkpoint": 4 * CASE.layers, "reversible midpoint": 4}[name]
    generators = CASE.layers * torch.get_rng_state().numel() if name == "checkpoint" else 0
    assert least * state <= found["kept"] - generators <= most * state
    forget()
    small(lambda: None)
    forget()
    assert peaks.by_allocator(step) == found  # nothing is left of the other steps


def test_a_compiled_step_forgets_its_gradients(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda block, **_: block)
    step, small, forget = compiled.steps(CASE, "reversible")
    (parameters,) = (c.cell_contents for c in forget.__closure__)
    for run in (step, small):
        run(lambda: None)
        assert parameters and all(p.grad is not None for p in parameters)
        forget()
        assert all(p.grad is None for p in parameters)


# ---- integrations beside another build ----


@pytest.fixture
def asked(monkeypatch, capsys):
    """``asked(job, *lines)``: what the child answers, as lines."""

    def ask(job, *lines):
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join([json.dumps(job), *lines]) + "\n"))
        runs_child.main()
        return capsys.readouterr().out.splitlines()

    yield ask
    gc.unfreeze()


@pytest.mark.parametrize("threads, clock", [(1, "process_time"), (2, "perf_counter")])
def test_a_child_says_what_it_is_and_times_what_it_is_asked_for(asked, monkeypatch, threads, clock):
    times = iter([1.0, 1.5, 4.0, 4.25])
    ran = []
    monkeypatch.setattr(runs_child, "compiled", lambda case: {"a": lambda: ran.append(("a", case))})
    monkeypatch.setattr(runs_child, "on_tensors", lambda case: {"b": lambda: ran.append(("b", case))})
    monkeypatch.setattr(runs_child.time, clock, lambda: next(times))
    about, *seconds = asked({"threads": threads, "case": {"x": 1}}, "b", "a")
    about = json.loads(about)
    assert about["runs"] == ["a", "b"] and about["folder"] == revstep.__path__[0]
    assert (about["revstep"], about["torch"]) == (revstep.__version__, torch.__version__)
    assert seconds == ["0.5", "0.25"] and torch.get_num_threads() == threads
    # Each once before the first is timed.
    assert ran == [(name, {"x": 1}) for name in ("a", "b", "b", "a")]


def test_every_run_of_a_child_is_the_one_it_is_called(monkeypatch):
    """Of both builds only the names are compared: they have to say scheme, state and length."""
    case = asdict(OdeCase(**RUNS))
    calls, integrate = [], runs_child.ode.integrate

    def watched(*problem, **options):
        calls.append(options)
        return integrate(*problem, **options)

    monkeypatch.setattr(runs_child.ode, "integrate", watched)
    found = runs_child.compiled(case)
    assert len(found) == 16
    for name, run in found.items():
        calls.clear()
        run()
        (options,) = calls
        kind, scheme, rest = name.split(", ", 2)
        assert options["loop"] == "compiled" and scheme == getattr(
            options["scheme"], "name", options["scheme"]
        )
        if kind == "one pendulum":
            assert rest == f"{options['steps']:,} steps" and _builds.bound_of(name) is None
            continue
        assert (rest == "exact") == (options["state"] is None)
        assert options["steps"] == (3 if kind == "pendulums" else 300)
        assert _builds.bound_of(name) == _builds.TO_OTHER_BUILD
    found = runs_child.on_tensors(case)
    for name, run in found.items():
        calls.clear()
        run()
        (options,) = calls
        kind, scheme, what = name.split(", ")
        assert kind == "neural field" and options["steps"] == 4
        assert scheme == getattr(options["scheme"], "name", options["scheme"])
        assert _builds.bound_of(name) == (_builds.GRADIENT if what == "gradient" else None)
    assert len(found) == 4
    assert runs_child.bodies()[0].shape == runs_child.bodies()[1].shape == (2, 3)


def test_the_two_bodies_are_those_of_the_benchmark():
    """At their nearest, their centre of mass at rest in the origin."""
    places, speeds = runs_child.bodies()
    masses = torch.tensor(runs_child.MASSES, dtype=torch.float64)
    for parts in (places, speeds):
        centre = (masses[:, None] * torch.as_tensor(parts)).sum(0)
        assert centre.abs().max() < 1e-15 * float(masses.sum())
    apart = torch.as_tensor(places[1] - places[0]).norm()
    assert float(apart) == pytest.approx(1 - runs_child.ECCENTRICITY)
    energy = 0.5 * float(torch.as_tensor(speeds[1] - speeds[0]).square().sum()) - float(masses.sum() / apart)
    assert energy == pytest.approx(-float(masses.sum()) / 2)  # of a semi-major axis of 1
