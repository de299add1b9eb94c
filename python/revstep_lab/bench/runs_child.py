"""The process behind ``revstep bench ode --against``: a case on the first line of stdin, then a name a line,
and the seconds of that run a line back.

Its text is run by another build's interpreter too (``python -c``), so that it imports what revstep has had
since 0.1.0 and nothing else.
"""

import gc
import json
import sys
import time
import warnings

import numpy as np
import torch

from revstep import __version__, ode
from revstep.state import Float

#: Two bodies and pendulums at rest, as in the parts of the same names: here without importing them.
MASSES, ECCENTRICITY = (1.0, 1e-3), 0.1


def bodies():
    total = sum(MASSES)
    distance, speed = 1 - ECCENTRICITY, (total * (1 + ECCENTRICITY) / (1 - ECCENTRICITY)) ** 0.5
    share = np.array([-MASSES[1], MASSES[0]])[:, None] / total
    return share * [distance, 0.0, 0.0], share * [0.0, speed, 0.0]


def states():
    return {"float64": Float(torch.float64), "exact": None}


def compiled(case):
    """Runs long enough that the loop is all that is timed."""
    field, start = ode.fields.NBody(masses=MASSES), bodies()
    swings = np.linspace(0.1, 3.0, case["pendulums"])[:, None]
    at_rest = swings, np.zeros_like(swings)
    pendulum, one = ode.fields.Pendulum(equation="second"), (np.array([1.0]), np.array([0.0]))
    found = {}

    def add(name, *problem, **options):
        found[name] = lambda: ode.integrate(*problem, loop="compiled", **options)

    for state, fmt in states().items():
        for scheme in ("verlet", "kahan_li6"):
            add(
                f"two bodies, {scheme}, {state}",
                field,
                start,
                scheme=scheme,
                h=1e-3,
                steps=case["loop_steps"],
                state=fmt,
            )
        for scheme in ("verlet", "blanes_moan4", "kahan_li8"):
            options = {"scheme": scheme, "h": 0.01, "steps": max(1, case["loop_steps"] // 100), "state": fmt}
            add(f"pendulums, {scheme}, {state}", pendulum, at_rest, **options)
        oscillator = ode.fields.VanDerPol(mu=1.0)
        coupled = {
            "scheme": ode.ReversibleRK("rk4", lam=0.5),
            "h": 0.01,
            "steps": case["loop_steps"],
            "state": fmt,
        }
        add(f"van der Pol, reversible_rk4, {state}", oscillator, np.array([2.0, 0.0]), **coupled)
    for steps in (10, 1000):
        for scheme in ("verlet", "kahan_li6"):
            add(f"one pendulum, {scheme}, {steps:,} steps", pendulum, one, scheme=scheme, h=0.01, steps=steps)
    return found


def on_tensors(case):
    """A network as a field: forward and backward, and forward alone."""
    width, steps = case["width"], case["depths"][len(case["depths"]) // 2]
    torch.manual_seed(0)
    layers = torch.nn.Sequential(
        torch.nn.Linear(width, 2 * width), torch.nn.Tanh(), torch.nn.Linear(2 * width, width)
    )
    y = torch.randn(case["batch"], width)
    schemes = {"midpoint": "midpoint", "reversible_rk4": ode.ReversibleRK("rk4", lam=0.5)}

    def field(t, x):
        return layers(x) * (1 + 0.5 * torch.sin(t)).to(x.dtype)

    def forward(scheme, start):
        return ode.integrate(field, start, scheme=scheme, h=1 / steps, steps=steps).ys[-1]

    def gradient(scheme):
        start = y.clone().requires_grad_()
        torch.autograd.grad(forward(scheme, start).square().mean(), [start, *layers.parameters()])

    def alone(scheme):
        with torch.no_grad():
            forward(scheme, y)

    found = {f"neural field, {name}, gradient": lambda s=s: gradient(s) for name, s in schemes.items()}
    return found | {f"neural field, {name}, forward": lambda s=s: alone(s) for name, s in schemes.items()}


def main():
    job = json.loads(sys.stdin.readline())
    warnings.simplefilter("ignore")
    torch.set_num_threads(job["threads"])
    runs = {**compiled(job["case"]), **on_tensors(job["case"])}
    clock = time.process_time if job["threads"] == 1 else time.perf_counter
    for run in runs.values():
        run()
    gc.collect()
    gc.freeze()
    folder = sys.modules["revstep"].__path__[0]
    about = {"revstep": __version__, "torch": torch.__version__, "folder": folder}
    print(json.dumps({**about, "runs": list(runs)}), flush=True)
    for line in sys.stdin:
        gc.collect()
        begin = clock()
        runs[line.strip()]()
        print(clock() - begin, flush=True)


if __name__ == "__main__":
    main()
