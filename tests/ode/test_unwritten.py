"""C functions that leave some of their output unwritten, or add to it."""

import ctypes

import numpy as np
import pytest
from callback_cases import EQUATIONS, LOOPS, adds, leaves, solve, spring

import revstep
from revstep.errors import CallbackError
from revstep.ode import _callbacks


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("equation", EQUATIONS)
@pytest.mark.parametrize("loop", LOOPS)
def test_a_component_that_was_not_written(loop, equation, which):
    with pytest.raises(
        CallbackError,
        match=rf"step \d+, t = 0.5\d*: the callback returned and out\[{which}\] was not written",
    ) as caught:
        solve(leaves(which), equation, loop=loop)
    assert caught.value.step == 50 and caught.value.__cause__ is None


@pytest.mark.parametrize("loop", LOOPS)
def test_out_that_is_added_to_was_not_set(loop):
    with pytest.raises(CallbackError, match="or was added to instead of set"):
        solve(spring(adds), loop=loop)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_nan_that_was_written_is_a_value_that_does_not_fit(loop):
    def nan(t, x, out, n):
        if t > 0.5:
            out[0] = out[1] = float("nan")
            return True
        return None

    with pytest.raises(revstep.StateOverflowError, match="the field returned nan for that component"):
        solve(spring(nan), loop=loop)


def test_another_nan_would_not_be_told_apart(monkeypatch):
    monkeypatch.setattr(_callbacks, "UNWRITTEN", np.array([0.0]))
    monkeypatch.setattr("revstep.ode._functions.UNWRITTEN", np.array([0.0]))
    assert solve(spring(adds), loop="python").ys is not None  # zeros are added to as if they had been meant


def test_both_loops_fill_with_the_same_nan():
    """What C sees in out before it writes: the compiled loop's is the constant of the Python loop."""
    seen = []

    def look(t, x, out, n):
        seen.append(ctypes.cast(out, ctypes.POINTER(ctypes.c_uint64))[0])

    for loop in LOOPS:
        solve(spring(look), loop=loop, steps=1)
    assert set(seen) == {int(_callbacks.UNWRITTEN.view(np.uint64)[0])} and np.isnan(_callbacks.UNWRITTEN[0])


def test_a_stage_that_counts_for_nothing_has_to_be_written_too():
    """Of a Runge-Kutta method: nothing of it would show in the state."""
    calls = []

    def write(t, x, out, n):
        calls.append(t)
        return len(calls) > 30 or None

    with pytest.raises(CallbackError, match="was not written"):
        solve(spring(write), "first", scheme="reversible_rk4", steps=30)
    assert len(calls) == 31  # nothing is asked of it any more
