#!/usr/bin/env bash
# Two threads whose dispatch modes overlap in time turn torch.compile off for the rest of the process: it compiles
# nothing, says nothing, and fullgraph=True raises nothing either.
#
# One would guess that a mode acts on its own thread, as its documentation says; what it sees does. But each
# __enter__ and __exit__ of TorchDispatchMode also saves, sets and puts back flags of the whole process, by which
# torch.compile leaves code under a mode alone. The thread that enters second finds them set by the first, and if
# it leaves last it puts them back so. From then on torch believes that a mode is on, in every thread, though the
# stack of modes is empty.
#
# What helps: no two threads in a mode at once (counting FLOPs or memory, DebugMode, a package's own modes); or
# torch 2.13, where torch.compile looks at the modes that really are on. The flags still stay set there.
#
# Seen with torch 2.9.0 and 2.13.0, Python 3.10 and 3.11, x86-64 Linux, 2026-11-30:
#   torch 2.9.0: compiled before: 1 graph, after: 0 graphs; modes on: 0, torch says: True
#   torch 2.13.0: compiled before: 1 graph, after: 1 graphs; modes on: 0, torch says: True
#
# torch 2.9.0 is downloaded with its CUDA libraries, about 3 GB. Exit status 0: as described. 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cat >"$work/modes.py" <<'PY'
import threading

import torch
from torch._dynamo.testing import CompileCounter
from torch.utils import _python_dispatch as dispatch


class Mode(dispatch.TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def graphs():
    torch._dynamo.reset()
    counter = CompileCounter()
    torch.compile(lambda x: x.sin() + 1, backend=counter, fullgraph=True)(torch.ones(3))
    return counter.frame_count


first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()


def first():
    with Mode():
        first_in.set()
        second_in.wait()
    first_out.set()


def second():
    first_in.wait()
    with Mode():
        second_in.set()
        first_out.wait()


before = graphs()
threads = [threading.Thread(target=f) for f in (first, second)]
for t in threads:
    t.start()
for t in threads:
    t.join()
on = len(dispatch._get_current_dispatch_mode_stack())
print(
    f"torch {torch.__version__.partition('+')[0]}: compiled before: {before} graph, after: {graphs()} graphs; "
    f"modes on: {on}, torch says: {dispatch.is_in_torch_dispatch_mode()}"
)
PY
status=0
check() { # version, graphs afterwards
    "${PYTHON:-python3}" -m venv "$work/$1"
    "$work/$1/bin/pip" install -q --disable-pip-version-check "torch==$1" numpy
    local got
    got=$("$work/$1/bin/python" "$work/modes.py")
    echo "$got"
    [ "$got" = "torch $1: compiled before: 1 graph, after: $2 graphs; modes on: 0, torch says: True" ] || status=1
    rm -rf "${work:?}/$1"
}
check 2.13.0 1
check 2.9.0 0
exit "$status"
