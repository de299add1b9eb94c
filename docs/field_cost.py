"""Measures what one evaluation of a field costs in a run, and writes docs/benchmarks/field_cost.json.

Usage: python docs/field_cost.py        (needs revstep, a C compiler called cc and, where it is, numba)

The times are those of the processor in one thread, not of the clock on the wall, so that other work on the
machine disturbs them little. Each is the least of several runs.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from revstep import ode
from revstep._cli.shared import write_json
from revstep.ode._functions import NUMBA
from revstep_lab.bench.runner import environment

FILE = Path(__file__).resolve().parent / "benchmarks" / "field_cost.json"
COMMAND = "python docs/field_cost.py"
ROUNDS = 12
STEPS = {"python": 400, "compiled": 400_000}
BATCH = 1000
C_SOURCE = """#include <math.h>
void pendulum(double t, const double *x, double *out, long n, void *user)
{
    for (long i = 0; i < n; i++) out[i] = -sin(x[i]);
}
"""


def on_arrays(t: float, q: np.ndarray) -> np.ndarray:
    return -np.sin(q)


def on_tensors(t: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    return -torch.sin(q)


def least(f: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """Seconds of this thread."""
    found = []
    for _ in range(rounds):
        begin = time.thread_time()
        f()
        found.append(time.thread_time() - begin)
    return min(found)


def itself(f: Callable[..., Any], t: Any, q: Any, count: int) -> float:
    """Microseconds of a call of the function alone."""
    return least(lambda: [f(t, q) for _ in range(count)]) / count * 1e6


def inside(field: Any, start: tuple[Any, Any], loop: str, rounds: int = ROUNDS) -> float:
    """Microseconds of an evaluation in a run, everything that a step does included."""
    done = []

    options: dict[str, Any] = {"scheme": "verlet", "h": 1e-3, "loop": loop, "threads": 1}

    def run() -> None:
        done.append(ode.integrate(field, start, steps=STEPS[loop], **options))

    return least(run, rounds) / done[-1].stats.evaluations * 1e6


def c_function(folder: Path) -> Any:
    (folder / "pendulum.c").write_text(C_SOURCE, encoding="utf-8")
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", "pendulum.so", "pendulum.c", "-lm"]
    subprocess.run(command, cwd=folder, check=True)
    f = ctypes.CDLL(str(folder / "pendulum.so")).pendulum
    double = ctypes.POINTER(ctypes.c_double)
    f.restype, f.argtypes = None, [ctypes.c_double, double, double, ctypes.c_long, ctypes.c_void_p]
    return f


def numba_function() -> Any:
    """None where numba is not installed."""
    try:
        import numba
    except ModuleNotFoundError:
        return None

    @numba.cfunc(NUMBA)
    def pendulum(t, x, out, n, user):
        for i in range(n):
            out[i] = -np.sin(x[i])

    return pendulum


def measure(rounds: int = ROUNDS) -> list[dict[str, Any]]:
    """Rows: what the field is, microseconds by itself (None: it is not called from Python), and in a run."""
    one = np.array([1.0]), np.array([0.0])
    tensors = tuple(map(torch.from_numpy, one))
    many = np.ones((BATCH, 1)), np.zeros((BATCH, 1))
    arrays, field = ode.SecondOrder(on_arrays), ode.SecondOrder(on_tensors)
    asked = [(arrays, one), (arrays, many), (field, tensors)]
    alone = [itself(f.functions()[0], 0.0, start[0], 2_000) for f, start in asked]
    names = ("a Python function of arrays", f"the same, {BATCH:,} systems", "a Python function of tensors")
    runs = [inside(f, start, "python", rounds) for f, start in asked]
    rows: list[tuple[str, Any, float]] = list(zip(names, alone, runs))
    given = {"numba.cfunc": numba_function()}
    with tempfile.TemporaryDirectory() as folder:
        given["a C function, by ctypes"] = c_function(Path(folder))
        for name, f in given.items():
            if f is not None:
                compiled = ode.CompiledField(f, equation="second", dim=1)
                rows.append((name, None, inside(compiled, one, "compiled", rounds)))
    rows.append(("built in", None, inside(ode.fields.Pendulum(equation="second"), one, "compiled", rounds)))
    return [{"field": name, "itself": own, "run": run} for name, own, run in rows]


def text() -> str:
    """The table of docs/ode.md."""
    from methods import device_line, table

    record = json.loads(FILE.read_text(encoding="utf-8"))
    head = ["pendulum, q'' = -sin q, `verlet`", "the function itself", "an evaluation in a run"]
    rows = [[r["field"], us(r["itself"]), us(r["run"])] for r in record["rows"]]
    line = device_line(record["environment"], record["command"])
    note = f"{line} ([all numbers](benchmarks/{FILE.name})). Times are of the processor, in one thread."
    return f"{note}\n\n{table(head, rows)}"


def us(x: float | None) -> str:
    if x is None:
        return "-"
    return f"{x:.2g} us" if x < 100 else f"{x:.0f} us"


def main() -> int:
    torch.set_num_threads(1)
    rows = measure()
    for r in rows:
        print(r, flush=True)
    write_json(str(FILE), {"environment": environment(), "command": COMMAND, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
