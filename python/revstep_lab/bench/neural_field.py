"""The gradient of a neural field through an integration, for ``revstep bench ode``: seconds of forward and
backward and bytes kept between them, beside torchdiffeq and diffrax.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from revstep import ode

from .packages import peer
from .runner import goal, measure

# ------------------------------------------------------------------------------------------------------------
# The gradient of the neural field by diffrax: the same weights, the same start, compiled once by XLA. Its
# LeapfrogMidpoint is our midpoint.

#: A call returns the gradients of the mean square of y(1), with respect to y(0) and the parameters, when they
#: are there.
Call = Callable[[], Any]


def compiled_calls(diffrax: ModuleType, net: nn.Module, y: Tensor, steps: int) -> dict[str, tuple[Call, int]]:
    """``(call, bytes of XLA's temporaries)`` by name: checkpointed (the default: at most sqrt(2 steps)
    states), all states kept, integrated backwards, or stepped backwards (McCallum and Foster's method around
    the solver). Its Midpoint is torchdiffeq's; it has no fixed Runge-Kutta method of order 4.
    """
    import jax

    def field(t: Any, y: Any, weights: list) -> Any:
        first, bias, second, offset = weights
        return (jax.numpy.tanh(y @ first.T + bias) @ second.T + offset) * (1 + 0.5 * jax.numpy.sin(t))

    checkpointed = diffrax.RecursiveCheckpointAdjoint
    rows = {
        "diffrax LeapfrogMidpoint": (diffrax.LeapfrogMidpoint(), checkpointed()),
        "diffrax LeapfrogMidpoint, all states": (diffrax.LeapfrogMidpoint(), checkpointed(checkpoints=steps)),
        "diffrax LeapfrogMidpoint, backsolve": (diffrax.LeapfrogMidpoint(), diffrax.BacksolveAdjoint()),
        "diffrax ReversibleHeun": (diffrax.ReversibleHeun(), checkpointed()),
        "diffrax Midpoint": (diffrax.Midpoint(), checkpointed()),
        "diffrax Midpoint, all states": (diffrax.Midpoint(), checkpointed(checkpoints=steps)),
    }
    reversible = getattr(diffrax, "ReversibleAdjoint", None)  # newer ones
    if reversible is not None:
        rows["diffrax ReversibleHeun, reversible"] = diffrax.ReversibleHeun(), reversible()
        rows["diffrax Midpoint, reversible"] = diffrax.Midpoint(), reversible()
    weights = [jax.numpy.asarray(p.detach().numpy()) for p in net.parameters()]
    start = jax.numpy.asarray(y.detach().numpy())

    def prepared(solver: Any, adjoint: Any) -> tuple[Call, int]:
        def loss(y: Any, weights: list) -> Any:
            found = diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                solver,
                0.0,
                1.0,
                1 / steps,
                y,
                args=weights,
                adjoint=adjoint,
                max_steps=steps,
                stepsize_controller=diffrax.ConstantStepSize(),
            )
            return jax.numpy.mean(found.ys[-1] ** 2)

        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(start, weights).compile()
        return (
            lambda: jax.block_until_ready(program(start, weights)),
            program.memory_analysis().temp_size_in_bytes,
        )

    return {name: prepared(solver, adjoint) for name, (solver, adjoint) in rows.items()}


def as_tensors(gradients: Any) -> list[Tensor]:
    """What a call returned, as :func:`gradients` gives it."""
    of_start, of_weights = gradients
    return [torch.from_numpy(np.array(g)) for g in (of_start, *of_weights)]


# ------------------------------------------------------------------------------------------------------------
# Gradient of a neural field: time of forward and backward, and bytes kept between them, by the number of
# steps, beside torchdiffeq and diffrax.

OURS = ("midpoint", "yoshida4", "reversible_rk4")
#: What a name of ours says of its loop, and the loop.
LOOPS = {"": "captured", ", loop in Python": "python"}
#: The most of torchdiffeq's time.
GOALS = {"midpoint": 0.9, "yoshida4": 1.3, "reversible_rk4": 1.3}
#: torchdiffeq's fixed grid of the same order: its midpoint is the Runge-Kutta one (2 evaluations a step; ours
#: 1), its rk4 has 4.
THEIRS = {"midpoint": "midpoint", "yoshida4": "rk4", "reversible_rk4": "rk4"}
#: Above this many steps a third of the rounds, and none to warm up.
MANY = 64


class Net(nn.Module):
    """Width -> 2 width -> width with tanh; time enters through a factor."""

    def __init__(self, width: int):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))

    def forward(self, t: Tensor, y: Tensor) -> Tensor:
        return self.layers(y) * (1 + 0.5 * torch.sin(t))


Forward = Callable[[Tensor], tuple[Tensor, int]]


def forwards(net: Net, steps: int, torchdiffeq: Any) -> dict[str, Forward]:
    """y(0) -> y(1) and the bytes that saved-tensor hooks do not see, by name."""

    def ours(scheme: str, loop: str) -> Forward:
        def run(y: Tensor) -> tuple[Tensor, int]:
            found = ode.integrate(net, y, scheme=scheme, h=1 / steps, steps=steps, loop=loop)
            # Saved as tensors: the hooks count them.
            slots = sum(s.numel() * s.element_size() for s in found.final)
            return found.ys[-1], found.stats.bytes_saved - slots

        return run

    def stored(y: Tensor) -> tuple[Tensor, int]:
        times = (torch.arange(steps, dtype=torch.float64) / steps).to(y.dtype)
        before, now = y, y + net(times[0], y) / steps
        for t in times[1:]:
            before, now = now, before + net(t, now) * (2 / steps)
        return now, 0

    def theirs(solve: Callable, method: str) -> Forward:
        return lambda y: (
            solve(net, y, torch.tensor([0.0, 1.0]), method=method, options={"step_size": 1 / steps})[-1],
            0,
        )

    found = {f"revstep {name}{how}": ours(name, loop) for name in OURS for how, loop in LOOPS.items()}
    found["midpoint, stored by autograd"] = stored
    if torchdiffeq is not None:
        for method in ("midpoint", "rk4"):
            found[f"torchdiffeq {method}"] = theirs(torchdiffeq.odeint, method)
            found[f"torchdiffeq {method}, adjoint"] = theirs(torchdiffeq.odeint_adjoint, method)
    return found


def bytes_kept(forward: Forward, net: Net, y: Tensor) -> int:
    """Of tensors that autograd has saved and still holds when the forward pass is over, parameters left out,
    and what hooks do not see.
    """
    parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
    alive: weakref.WeakSet = weakref.WeakSet()

    class Packed:
        def __init__(self, t: Tensor):
            self.t = t.detach()  # an output saved as it is would hold the graph it is in
            alive.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Packed, lambda packed: packed.t):
        out, more = forward(y.detach().requires_grad_())
    storages = {k.t.untyped_storage().data_ptr(): k.t.untyped_storage().nbytes() for k in alive}
    kept = sum(n for address, n in storages.items() if address not in parameters) + more
    del out
    return kept


def gradients(forward: Forward, net: Net, y: Tensor) -> list[Tensor]:
    """Of the mean square of y(1), with respect to y(0) and the parameters."""
    leaf = y.detach().requires_grad_()
    out, _ = forward(leaf)
    return list(torch.autograd.grad(out.square().mean(), [leaf, *net.parameters()]))


def _off(a: list[Tensor], b: list[Tensor]) -> float:
    """Relative to the norm of ``b``."""
    flat = [torch.cat([g.double().flatten() for g in gs]) for gs in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def first_calls(rows: int, width: int, steps: int) -> dict[str, list[float]]:
    """Seconds of the first gradient by each of our methods, with capturing, and of the second; each of a
    network that the process has not met. (In the first of all, torch's tracer is imported too.)
    """
    found = {}
    for name in OURS:
        net, y = Net(width), torch.randn(rows, width)
        forward = forwards(net, steps, None)[f"revstep {name}"]
        found[name] = []
        for _ in range(2):
            begin = time.perf_counter()
            gradients(forward, net, y)
            found[name].append(time.perf_counter() - begin)
    return found


def _beside(rows: list[dict], steps: int) -> list[dict]:
    """Goals on our time beside torchdiffeq's stored method."""
    measured = {m["name"]: m["ratios"] for m in rows}
    goals = []
    for name, bound in GOALS.items():
        ours = measured[f"revstep {name}"]
        theirs = f"torchdiffeq {THEIRS[name]}"
        if theirs in ours:
            goals.append(goal(f"{steps:,} steps, revstep {name} / {theirs}", ours[theirs], bound, False))
    return goals


def run(depths: tuple[int, ...], rows: int, width: int, rounds: int) -> dict:
    """Rows a depth: seconds of forward and backward, ratios, bytes kept (diffrax: None, and XLA's temporaries
    of both passes); goals on the bytes.
    """
    packages = {name: peer(name) for name in ("torchdiffeq", "diffrax")}
    torchdiffeq, diffrax = (module for module, _ in packages.values())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net, y = Net(width), torch.randn(rows, width)
        began = first_calls(rows, width, depths[0])
    # Beside other work on the machine the processor's time says more; with several threads it adds them up.
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    measured: dict[str, list[dict]] = {}
    kept: dict[str, dict[int, int]] = {}
    for steps in depths:
        variants = forwards(net, steps, torchdiffeq)
        for name, forward in variants.items():
            kept.setdefault(name, {})[steps] = bytes_kept(forward, net, y)
        compiled = compiled_calls(diffrax, net, y, steps) if diffrax is not None else {}
        calls = {name: lambda f=f: gradients(f, net, y) for name, f in variants.items()} | {
            name: call for name, (call, _) in compiled.items()
        }
        taken = rounds if steps <= MANY else max(1, rounds // 3)
        timed = measure(calls, taken, warmup=int(steps <= MANY), clock=clock)
        found = [{**m.to_dict(), "rounds": taken} for m in timed]
        for m in found:
            m |= (
                {"bytes_kept": None, "xla_temporaries": compiled[m["name"]][1]}
                if m["name"] in compiled
                else {"bytes_kept": kept[m["name"]][steps]}
            )
        measured[str(steps)] = found
    first, last = depths[0], depths[-1]
    goals = [
        goal(
            f"bytes kept by revstep {name} at {last:,} steps / at {first:,}",
            kept[f"revstep {name}"][last] / kept[f"revstep {name}"][first],
            1.0,
            False,
        )
        for name in OURS
    ]
    at = min(depths, key=lambda n: abs(n - MANY))
    goals += _beside(measured[str(at)], at)
    compared = forwards(net, at, None)
    off = _off(
        gradients(compared["revstep midpoint"], net, y),
        gradients(compared["midpoint, stored by autograd"], net, y),
    )
    what = {
        "torchdiffeq": "torchdiffeq's stored graph and adjoint",
        "diffrax": "diffrax's leapfrog midpoint and reversible Heun",
    }
    skipped = [
        {"what": what[name], "reason": reason}
        for name, (module, reason) in packages.items()
        if module is None
    ]
    return {
        "batch": rows,
        "width": width,
        "steps": measured,
        "first_calls": began,
        "clock": "processor" if clock is time.process_time else "wall",
        "gradient_off_stored": {"steps": at, "relative": off},
        "goals": goals,
        "skipped": skipped,
    }
