#!/usr/bin/env bash
# torchdiffeq hands the field its time in the dtype of the *state*: float64 times arrive as float32 when the
# state is float32, although the solver itself steps in float64.
#
# One would guess that a tensor of float64 times keeps its precision, since it is the caller who chose it and
# the solver accepts it. The steps are indeed formed from the float64 times. But each time is cast to the
# dtype of the state before the field sees it. float32 cannot tell a second of Unix time from the next 127, so
# a field that is driven by the clock sees one and the same time for many steps, then jumps by 128 s. The step
# sizes are right, the times are not, and the solution is off by 0.31 where its amplitude is 1, without a
# warning. The same run with a float64 state, or with times counted from 0, is right.
#
# What helps: count times from the start of the run and add the offset inside the field, or use a float64
# state.
#
# Seen with Python 3.11, torch 2.13.0, torchdiffeq 0.2.5, CPU, 2026-11-28; y' = w cos(w t) with a period of
# 600 s, ten periods in steps of 10 s:
#   float32 state, Unix time: 48 different times in 2400 evaluations, largest error 0.31
#   float32 state, time from 0: 1801 different times in 2400 evaluations, largest error 4.3e-07
#   float64 state, Unix time: 1801 different times in 2400 evaluations, largest error 3.4e-08
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 scipy==1.17.1 torchdiffeq==0.2.5
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import math
import sys
from importlib.metadata import version

import torch
import torchdiffeq

print(f"torch {torch.__version__}, torchdiffeq {version('torchdiffeq')}")
w = 2 * math.pi / 600


def run(dtype, start):
    times = start + 10.0 * torch.arange(601, dtype=torch.float64)
    seen = []

    def driven(t, y):
        seen.append(float(t))
        return (w * torch.cos(w * t.double())).to(y.dtype) * torch.ones_like(y)

    y = torchdiffeq.odeint(driven, torch.zeros(1, dtype=dtype), times, method="rk4")
    right = torch.sin(w * times) - math.sin(w * start)
    return len(set(seen)), len(seen), float((y[:, 0].double() - right).abs().max())


unix, zero, double = run(torch.float32, 1.7e9), run(torch.float32, 0.0), run(torch.float64, 1.7e9)
for name, found in (("float32 state, Unix time", unix), ("float32 state, time from 0", zero), ("float64 state, Unix time", double)):
    print(f"{name}: {found[0]} different times in {found[1]} evaluations, largest error {found[2]:.2g}")
same = unix[0] < 60 and unix[2] > 0.1 and zero[0] > 1000 and zero[2] < 1e-5 and double[0] > 1000 and double[2] < 1e-5
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
PYTHON
