#!/usr/bin/env bash
# A force that depends on time is evaluated by REBOUND's JANUS at the time where the step began, at every one of
# the stages of the step: a method of order 6 becomes one of order 1.
#
# One would guess that sim.t follows the stages, since an additional force can only ask there what time it is, and
# since the method is of order 6 for everything else. The nine stages of a step see one and the same t. With a
# force of time alone the error falls in half when the step is halved, where that of IAS15 is at rounding. No
# warning says so.
#
# What helps: take the time from a particle that moves with velocity 1 and feels no force, and read its position
# in the force; or another integrator.
#
# Seen with Python 3.11, rebound 5.2.2, 2026-11-30; x'' = cos t from rest for t = 0 to 2, where x = 1 - cos t:
#   times that the force saw in the first two steps: 0.00 (9 times), 0.01 (9 times)
#   janus, order 6: error 1.1e-02 with steps of 0.02, 5.4e-03 with 0.01: ratio 2.0
#   janus, the time as a coordinate: error 4.3e-14 with steps of 0.02
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet rebound==5.2.2 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import math
import sys
from collections import Counter

import rebound


def run(dt, as_coordinate=False, steps=None):
    """The error at t = 2, and how often the force saw which time."""
    sim = rebound.Simulation()
    sim.integrator, sim.dt, sim.G = "janus", dt, 0.0
    sim.integrator.order = 6
    sim.add(m=1.0)
    sim.add(m=1.0, x=0.0, vx=1.0, y=5.0)  # a clock
    seen = Counter()

    def force(pointer):
        inside = pointer.contents
        t = inside.particles[1].x if as_coordinate else inside.t
        seen[round(t, 6)] += 1
        inside.particles[0].ax += math.cos(t)

    sim.additional_forces = force
    sim.steps(round(2.0 / dt) if steps is None else steps)
    return abs(sim.particles[0].x - (1.0 - math.cos(sim.t))), seen


_, seen = run(0.01, steps=2)
print("times that the force saw in the first two steps: " + ", ".join(f"{t:.2f} ({n} times)" for t, n in seen.items()))
coarse, fine, clock = run(0.02)[0], run(0.01)[0], run(0.02, as_coordinate=True)[0]
print(f"janus, order 6: error {coarse:.1e} with steps of 0.02, {fine:.1e} with 0.01: ratio {coarse / fine:.1f}")
print(f"janus, the time as a coordinate: error {clock:.1e} with steps of 0.02")
same = dict(seen) == {0.0: 9, 0.01: 9} and abs(coarse / fine - 2.0) < 0.1 and fine > 1e-3 and clock < 1e-12
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
PYTHON
