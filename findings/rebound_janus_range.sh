#!/usr/bin/env bash
# REBOUND's JANUS keeps positions as 64-bit integers in steps of 1e-16, so that a coordinate beyond 922 cannot
# be held. It is not refused: every such coordinate becomes -922.337, and the run goes on.
#
# One would guess an error, or a scale that follows the system, for the units are the user's: a distance of
# 1,000 is ordinary in kilometres, and no smaller precision is asked for by writing it. The limit is 2^63 times
# scale_pos, and scale_pos is 1e-16 unless it is set. A particle that starts at 1,000 is at -922 after the first
# step, and one that drifts past 922 jumps across the whole system. The way back then returns to the wrong place
# bit for bit, so the test of reversibility passes as well.
#
# What helps: set scale_pos and scale_vel to the largest coordinate that can occur, divided by 2^62; or units in
# which the system has the size 1.
#
# Seen with Python 3.11, rebound 5.2.2, 2026-11-30; a circular orbit around a mass of 1, a hundred steps there
# and back:
#   orbit of radius 900: x = 900.000, it came back bit for bit
#   orbit of radius 1000: x = -922.337, it came back bit for bit
#   orbit of radius 1000, scale_pos 1e-14: x = 1000.000, it came back bit for bit
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

import rebound


def run(radius, scale=None):
    sim = rebound.Simulation()
    sim.integrator, sim.dt = "janus", 0.01
    if scale is not None:
        sim.integrator.scale_pos = scale
    sim.add(m=1.0)
    sim.add(m=0.0, x=radius, vy=math.sqrt(1.0 / radius))
    sim.steps(1)  # rounds the start to the grid
    state = [(p.x, p.y, p.vx, p.vy) for p in sim.particles]
    sim.steps(100)
    x = sim.particles[1].x
    sim.dt = -sim.dt
    sim.steps(100)
    return x, state == [(p.x, p.y, p.vx, p.vy) for p in sim.particles]


inside, outside, scaled = run(900.0), run(1000.0), run(1000.0, 1e-14)
for name, (x, back) in (("900", inside), ("1000", outside), ("1000, scale_pos 1e-14", scaled)):
    print(f"orbit of radius {name}: x = {x:.3f}, it {'came' if back else 'did not come'} back bit for bit")
same = abs(inside[0] - 900) < 1e-3 and abs(outside[0] + 922.337) < 1e-3 and abs(scaled[0] - 1000) < 1e-3
same = same and inside[1] and outside[1] and scaled[1]
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
PYTHON
