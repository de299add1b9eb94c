#!/usr/bin/env bash
# A function compiled by numba.cfunc that divides by zero raises inside the C call, where nobody can catch it: the
# message goes to stderr, the caller gets 0.0, or an array half written, and goes on.
#
# One would guess inf, as in C, since the function is made to be called from C. But numba's default is Python's
# error model, in which x / 0.0 raises ZeroDivisionError. A C caller has no exceptions: numba prints "Exception
# ignored" and returns zero. An integrator that calls such a field at a collision goes on with a force of zero, or
# with the components that were written before. numba.njit raises in the same place, so the function looks right
# where it is tried in Python.
#
# What helps: error_model="numpy", with which the division gives inf or NaN and the caller can see it.
#
# Seen with Python 3.11, numba 0.68.1, numpy 2.4.6, 2026-11-30:
#   njit: ZeroDivisionError
#   cfunc, 1 / 0: 0.0, "Exception ignored" on stderr
#   cfunc with error_model="numpy", 1 / 0: inf
#   cfunc that fills three numbers and divides by zero at the second: [-1.0, 7.0, 0.0]
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet numba==0.68.1 numpy==2.4.6
"$work/venv/bin/python" -W ignore - 2>"$work/stderr" <<'PYTHON' || { cat "$work/stderr"; exit 1; }
import ctypes
import math
import sys

import numba
import numpy as np
from numba import types


def inverse(x):
    return 1.0 / x


def fill(pointer, count):
    out = numba.carray(pointer, count)
    for i in range(count):
        out[i] = 7.0
        out[i] = 1.0 / (i - 1)


try:
    raised = f"no error, {numba.njit(inverse)(0.0)}"
except ZeroDivisionError as error:
    raised = type(error).__name__
python = numba.cfunc(types.float64(types.float64))(inverse).ctypes(0.0)
numpy = numba.cfunc(types.float64(types.float64), error_model="numpy")(inverse).ctypes(0.0)
half = np.zeros(3)
filled = numba.cfunc(types.void(types.CPointer(types.float64), types.intc))(fill)
filled.ctypes(half.ctypes.data_as(ctypes.POINTER(ctypes.c_double)), 3)
print(f"njit: {raised}")
print(f'cfunc, 1 / 0: {python}, "Exception ignored" on stderr')
print(f'cfunc with error_model="numpy", 1 / 0: {numpy}')
print(f"cfunc that fills three numbers and divides by zero at the second: {half.tolist()}")
same = raised == "ZeroDivisionError" and python == 0.0 and math.isinf(numpy) and half.tolist() == [-1.0, 7.0, 0.0]
sys.exit(0 if same else 1)
PYTHON
if [ "$(grep -c 'Exception ignored' "$work/stderr")" -eq 2 ]; then echo 'as described'; else echo 'the behaviour has changed'; exit 1; fi
