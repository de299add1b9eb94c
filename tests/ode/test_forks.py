"""Forked children of a process that has used threads: they work, alone."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

#: The parent takes its threads into use and forks; the child does the same work. ``{spoil}`` runs in the
#: child first.
SCRIPT = """
import os, sys, warnings
import numpy as np, torch
import revstep
from revstep import ode, ops
from revstep.ops import _forks

warnings.simplefilter("ignore")
torch.set_num_threads(2)

def work():
    q = np.tile([[0.1, 0.2]], (4096, 1))
    field = ode.fields.HenonHeiles()
    run = ode.integrate(field, (q, 0.1 * q), scheme="verlet", h=0.01, steps=40, threads={threads})
    x = torch.linspace(-1.0, 1.0, 1 << 20)
    state = revstep.FixedPoint(32, 20).encode(x)[1]
    threads = torch.get_num_threads(), _forks.threads()
    return run.ys[-1].tobytes(), run.reverse().exact, ops.checksum(state).tolist(), *threads

parent = work()
assert parent[1] and parent[3:] == (2, 2), parent[1:]
read, write = os.pipe()
child = os.fork()
if child == 0:
    {spoil}
    found = work()
    os.write(write, repr((found[:3] == parent[:3], found[3:])).encode())
    os._exit(0)
os.close(write)
print(os.read(read, 1000).decode(), flush=True)
os.waitpid(child, 0)
again = work()
assert again == parent, "the parent keeps its threads"
"""


def run(threads="None", spoil="pass", seconds=60):
    command = [sys.executable, "-c", SCRIPT.format(threads=threads, spoil=spoil)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        return process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)  # the child, too
        process.communicate()
        raise


@pytest.mark.parametrize("threads", ["None", "2", "64"])
def test_a_child_does_the_same_work(threads):
    out, err = run(threads)
    assert out.strip() == "(True, (1, 1))", err


def test_with_the_threads_of_the_parent_it_would_wait_for_ever():
    with pytest.raises(subprocess.TimeoutExpired):
        run("2", "_forks._forked = False; torch.set_num_threads(2)", seconds=8)
