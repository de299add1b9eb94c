"""C functions that fail: exceptions out of callbacks, Ctrl-C, whose hook it is; and the times they see."""

import ctypes
import os
import pickle
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from callback_cases import EQUATIONS, LOOPS, Mine, Y, hook_of_others, leaves, raising, solve, spring

import revstep
from revstep.errors import CallbackError, ConfigError
from revstep.ode import _callbacks, _compiled, methods
from revstep.ode._functions import CompiledField

# ---- exceptions ----


@pytest.mark.parametrize("late", [False, True], ids=["before writing", "after writing"])
@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("loop", LOOPS)
def test_what_a_callback_raises_ends_the_run(loop, equation, late):
    error = Mine("past the table")
    with (
        hook_of_others() as seen,
        pytest.raises(
            CallbackError, match=r"step \d+, t = 0.5\d*: the callback raised Mine: past the table"
        ) as caught,
    ):
        solve(raising(error, late=late), equation, loop=loop)
    found = caught.value
    assert found.__cause__ is error and seen == [] and isinstance(found, revstep.RevstepError)
    assert found.step == 50 and 0.5 < found.t < 0.52
    again = pickle.loads(pickle.dumps(found))
    assert str(again) == str(found) and (again.step, again.t, again.system) == (
        found.step,
        found.t,
        found.system,
    )


@pytest.mark.parametrize("state", [None, revstep.Float(torch.float64)], ids=["fixed", "float"])
@pytest.mark.parametrize("scheme", ["verlet", "kahan_li6", "midpoint", "reversible_rk4"])
def test_with_every_kind_of_method_and_state(scheme, state):
    equation = "first" if scheme in ("midpoint", "reversible_rk4") else "second"
    for function in (raising(Mine("x")), leaves(1), leaves(0)):
        for loop in LOOPS:
            with hook_of_others(), pytest.raises(CallbackError, match=r"step (49|50|51)"):
                solve(function, equation, scheme=scheme, state=state, loop=loop)


def test_without_the_hook_it_would_go_on(monkeypatch):
    """The broken variant: nobody stands in sys.unraisablehook, and a callback that raises after it has
    written is not noticed.
    """
    monkeypatch.setattr(_callbacks, "_add", lambda catcher: None)
    monkeypatch.setattr(_callbacks, "_remove", lambda catcher: None)
    with hook_of_others() as seen:
        assert np.isfinite(solve(raising(Mine("x"), late=True)).ys).all()
    assert seen and set(seen) == {Mine}
    with hook_of_others(), pytest.raises(CallbackError, match="was not written"):  # what it left out is
        solve(raising(Mine("x")))


def test_on_the_way_back():
    steps = []
    function = spring(lambda t, x, out, n: 1 / 0 if steps and t < 0.5 else None)
    run = solve(function)
    steps.append(1)
    with (
        hook_of_others(),
        pytest.raises(
            CallbackError,
            match=r"step 49, t = 0.49\d*, on the way back: the callback raised ZeroDivisionError",
        ),
    ):
        run.reverse()


@pytest.mark.parametrize("threads", [1, 2])
def test_in_a_batch_the_system_is_named(threads):
    batch = 300
    y0 = (np.tile(Y[0], (batch, 1)) * np.linspace(0.5, 1.0, batch)[:, None], np.zeros((batch, 2)))
    y0[0][211] = 3.0
    function = spring(lambda t, x, out, n: 1 / 0 if x[0] > 2.5 and t > 0.03 else None)
    with (
        hook_of_others(),
        pytest.raises(
            CallbackError, match="system 211 of 300: the callback raised ZeroDivisionError"
        ) as caught,
    ):
        solve(function, y0=y0, threads=threads, steps=400)
    assert (caught.value.system, caught.value.step) == (211, 3)
    with pytest.raises(CallbackError, match="system 211 of 300"):
        solve(function, y0=y0, loop="python", steps=5)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_no_error_comes_as_itself(loop, kind):
    error = kind()
    with hook_of_others(), pytest.raises(kind) as caught:
        solve(raising(error), loop=loop)
    assert caught.value is error


def test_the_arrays_of_the_caller_are_as_they_were():
    y0 = tuple(y.copy() for y in Y)
    with pytest.raises(KeyboardInterrupt):
        solve(raising(KeyboardInterrupt()), y0=y0)
    assert all(np.array_equal(a, b) for a, b in zip(y0, Y))


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("loop", LOOPS)
def test_ctrl_c_inside_a_callback(loop):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for k in range(6):
            timer = threading.Timer(0.05 + 0.003 * k, os.kill, (os.getpid(), signal.SIGINT))
            timer.start()
            start = time.monotonic()
            with hook_of_others() as seen, pytest.raises(KeyboardInterrupt):
                solve(spring(), steps=10**6, loop=loop)
            timer.join()
            assert seen == [] and time.monotonic() - start < 10
    finally:
        signal.signal(signal.SIGINT, before)


# ---- the hook ----


def test_exceptions_of_others_are_handed_on():
    class Noisy:
        def __del__(self):
            raise Mine("in a finaliser")

    other = ctypes.CFUNCTYPE(None)(lambda: 1 / 0)
    ran = []

    def elsewhere():
        other()  # a callback in a thread that is no part of the run
        ran.append(1)

    def write(t, x, out, n):
        if t > 0.5 and not ran:
            Noisy()
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()

    for loop in LOOPS:
        ran.clear()
        with hook_of_others() as seen:
            assert np.allclose(solve(spring(write), loop=loop).ys[-1], Y[0] * np.cos(1.0), atol=1e-4)
        assert sorted(kind.__name__ for kind in seen) == ["Mine", "ZeroDivisionError"]


def test_a_run_within_a_callback_keeps_its_own():
    inner = raising(Mine("inner"))
    seen = []

    def write(t, x, out, n):
        if t > 0.3 and not seen:
            with pytest.raises(CallbackError, match="raised Mine: inner"):
                solve(inner)
            seen.append(1)

    for loop in LOOPS:
        seen.clear()
        with hook_of_others() as others:
            assert np.isfinite(solve(spring(write), loop=loop).ys).all() and seen == [1] and others == []
    nested = spring(lambda t, x, out, n: solve(inner) and None if t > 0.3 else None)
    with hook_of_others(), pytest.raises(CallbackError, match="raised CallbackError: step 50") as caught:
        solve(nested)
    assert isinstance(caught.value.__cause__, CallbackError) and caught.value.step == 30


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # pytest's own hook is told in the end
def test_who_replaces_the_hook_meanwhile_keeps_theirs():
    before, own = sys.unraisablehook, []
    chained = []

    def replace(t, x, out, n):
        if t > 0.5 and not own:
            last = sys.unraisablehook
            own.append(lambda report: (chained.append(report.exc_type), last(report)))
            sys.unraisablehook = own[0]

    try:
        solve(spring(replace))
        assert sys.unraisablehook is own[0] and _callbacks._catchers == []
        with pytest.raises(CallbackError):  # and the next run stands before theirs
            solve(raising(Mine("x")))
        assert sys.unraisablehook is own[0] and chained == []
        ctypes.CFUNCTYPE(None)(
            lambda: 1 / 0
        )()  # which still hands on, through the hook of a run that is over
        assert chained == [ZeroDivisionError]
    finally:
        sys.unraisablehook = before


def test_runs_in_several_threads_each_get_their_own():
    found = {}

    def work(k):
        try:
            solve(raising(Mine(str(k)), after=0.2 + 0.05 * k), y0=(np.tile(Y[0], (20, 1)), np.zeros((20, 2))))
        except CallbackError as error:
            found[k] = str(error.__cause__), error.step

    with hook_of_others() as seen:
        workers = [threading.Thread(target=work, args=(k,)) for k in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert found == {k: (str(k), 20 + 5 * k) for k in range(6)} and seen == []


# ---- time ----


@pytest.mark.parametrize("name", ["kahan_li6", "blanes_moan4", "reversible_rk4"])
def test_times_are_kept_in_the_interval(name):
    h, steps = 0.1, 10
    method, asked = methods.resolve(name, h, None), []
    equation = "first"
    field = CompiledField(spring(lambda t, x, out, n: asked.append(t)), equation=equation, dim=2)
    slots = [torch.from_numpy(Y[0].copy())[None].clone() for _ in range(2)]

    def times(**more):
        asked.clear()
        work = tuple(s.clone() for s in slots)
        ran = _compiled.run(
            field.compiled(),
            lambda n: method.micros(n, equation),
            work,
            h=h,
            steps=steps,
            tableau=method.tableau,
            **more,
        )
        assert 0 < ran.evaluations <= len(asked)
        return list(asked)

    free, kept = times(), times(interval=(0.25, 0.5))
    assert min(free) < 0.25 and max(free) > 0.5
    assert min(kept) == 0.25 and max(kept) == 0.5
    assert set(kept) == {min(max(t, 0.25), 0.5) for t in free}
    with pytest.raises(ConfigError, match="expected the least and the greatest time"):
        times(interval=(0.5, 0.25))
