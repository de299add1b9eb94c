"""C callbacks of an oscillator that fail in some way, and a run with one."""

import contextlib
import sys

import numpy as np

from revstep import ode
from revstep.ode import _callbacks
from revstep.ode._functions import CFUNCTYPE, CompiledField

Y = (np.array([1.0, 0.5]), np.zeros(2))


class Mine(ValueError):
    pass


def spring(write=lambda t, x, out, n: None):
    """A callback of the oscillator, and what else it does first."""

    def function(t, x, out, n, user):
        if write(t, x, out, n) is None:
            for i in range(n):
                out[i] = -x[i]

    return CFUNCTYPE(function)


def raising(error, after=0.5, late=False):
    def write(t, x, out, n):
        if late:
            for i in range(n):
                out[i] = -x[i]
        if t > after:
            raise error

    return spring(write)


def leaves(which):
    """Writes all but one component, from t = 0.5 on."""

    def write(t, x, out, n):
        if t <= 0.5:
            return None
        for i in range(n):
            if i != which:
                out[i] = -x[i]
        return True

    return spring(write)


def adds(t, x, out, n):
    for i in range(n):
        out[i] += -x[i]
    return True


def solve(function, equation="second", y0=None, **options):
    field = CompiledField((function,) * (2 if equation == "separable" else 1), equation=equation, dim=2)
    y0 = (Y if equation != "first" else Y[0]) if y0 is None else y0
    return ode.integrate(field, y0, **{"scheme": "verlet", "h": 0.01, "steps": 100, **options})


@contextlib.contextmanager
def hook_of_others():
    """What comes to the hook that was there before."""
    seen, before = [], sys.unraisablehook
    sys.unraisablehook = mine = lambda report: seen.append(report.exc_type)
    try:
        yield seen
        assert sys.unraisablehook is mine, "the hook was not restored"
    finally:
        sys.unraisablehook = before
    assert _callbacks._catchers == []


LOOPS = ["compiled", "python"]
EQUATIONS = ["first", "second", "separable"]
