#!/usr/bin/env bash
# The continuous output of heyoka, called with one time after the other, gives one and the same array each time: a list
# of states at different times holds the last state as often as it is long.
#
# One would guess that co(t) returns the state at t, as the dense output of other packages does, since co is a function
# object and called with an array of times it returns an array that nothing else touches. Called with a number, it
# returns a read-only view of storage inside of co, and the next call writes there. [co(t) for t in times] has right
# shapes and plausible numbers, all of them those of the last time; the difference co(t + h) - co(t) is exactly zero;
# an orbit that is drawn from such a list is a point. Since the view is read-only, nothing can be written by accident,
# which would have shown it. The same holds for update_d_output of an integrator, whose manual says so.
#
# What helps: co(times) with an array of all times, or co(t).copy().
#
# Seen with Python 3.11, heyoka 7.13.2, numpy 2.4.6, 2026-11-30; x'' = -x from x = 1, so that x(t) = cos t:
#   x at 1, 2, 3 from a list of calls: -0.990 -0.990 -0.990
#   x at 1, 2, 3 from one call: 0.540 -0.416 -0.990
#   co(2) - co(1): [0. 0.]
#   writeable: False from a call with a number, True from one with an array
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet heyoka==7.13.2 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import heyoka as hy
import numpy as np

x, v = hy.make_vars("x", "v")
ta = hy.taylor_adaptive([(x, v), (v, -x)], [1.0, 0.0])
co = ta.propagate_until(10.0, c_output=True)[4]
times = [1.0, 2.0, 3.0]
calls, together = [co(t) for t in times], co(np.array(times))
print("x at 1, 2, 3 from a list of calls:", *(f"{state[0]:.3f}" for state in calls))
print("x at 1, 2, 3 from one call:", *(f"{state[0]:.3f}" for state in together))
difference = co(2.0) - co(1.0)
print(f"co(2) - co(1): {difference}")
one, many = calls[0].flags.writeable, together.flags.writeable
print(f"writeable: {one} from a call with a number, {many} from one with an array")
last = all(np.array_equal(state, co(3.0)) for state in calls)
right = np.allclose(together[:, 0], np.cos(times), rtol=0, atol=1e-13)
copied = np.array_equal([co(t).copy() for t in times], together)
same = last and right and copied and not difference.any() and (one, many) == (False, True)
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
