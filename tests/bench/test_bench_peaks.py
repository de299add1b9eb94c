"""Peak memory is counted to the byte by the allocator, measured in a process of its own, and a step that says
too little is refused.
"""

import functools
import json
import os
import subprocess
import sys

import pytest
import torch

from revstep import _cli
from revstep.errors import RevstepError
from revstep.plan._meter import Meter
from revstep_lab.bench import peaks
from revstep_lab.cases import peers
from revstep_lab.cases import trunk as trunk_module
from revstep_lab.cases.trunk import TrunkCase, train_step

CASE = TrunkCase(layers=3, width=16, heads=2, batch=2, length=8)
MB = 1 << 20


def known(between, forget_between=False):
    """16 MB that live over the end of the forward pass, 8 MB more before it and 4 MB after it."""
    kept, gone = torch.ones(4 * MB), torch.ones(2 * MB)
    del gone
    if not forget_between:
        between()
    more = torch.ones(MB)
    return kept, more


def test_known_bytes_to_the_byte():
    assert peaks.by_allocator(known) == {"kept": 16 * MB, "peak": 24 * MB}


def test_a_step_that_does_not_say_where_forward_ends_is_refused():
    with pytest.raises(RevstepError, match="between"):
        peaks.by_allocator(functools.partial(known, forget_between=True))


def test_memory_that_was_there_before_is_not_counted():
    """Released in the step, it would make the count negative."""
    before = [torch.ones(4 * MB)]

    def step(between):
        before.clear()
        between()
        torch.ones(MB)

    assert peaks.by_allocator(step) == {"kept": 0, "peak": 4 * MB}


@pytest.mark.parametrize("name", ["plain", "checkpoint", "reversible midpoint", "coupling"])
def test_it_is_what_is_counted_operation_by_operation(name):
    """plan's meter sees each operation's outputs; the allocator also an operator's scratch, here at most the
    attention's, and the generator state that torch's checkpoint copies for each block."""
    networks, _ = peers.families(CASE, name)
    trunk = next(rows[name] for rows in networks.values() if name in rows)
    parameters, x = (
        list(networks["residual"]["plain"].parameters()),
        torch.randn(CASE.batch, CASE.length, CASE.width),
    )
    found = peaks.by_allocator(lambda between: train_step(trunk, x, CASE, between))
    for p in parameters:
        p.grad = None
    with Meter(real=True) as meter:
        for t in (x, *parameters):
            meter.hold(t)
        before = meter.live
        train_step(trunk, x, CASE, lambda: meter.mark("forward"))
    kept, peak = meter.marks[0][1] - before, max(meter.marks[0][2], meter.peak) - before
    state = CASE.batch * CASE.length * CASE.width * 4
    generators = CASE.layers * torch.get_rng_state().numel() if name == "checkpoint" else 0
    assert 0 <= found["kept"] - kept - generators <= 64  # scalars of the statistics
    assert 0 <= found["peak"] - peak <= 2 * state + generators


def test_gradients_are_counted_and_forgotten():
    """The second step finds no gradients and makes them again; a third one, beside those of the second, peaks
    lower.
    """
    step, _, forget = trunk_module.steps(CASE, "reversible")
    first = peaks.by_allocator(step)
    forget()
    again = peaks.by_allocator(step)
    left = peaks.by_allocator(step)
    assert first == again and left != again


def test_process_sees_what_is_touched():
    """64 MB, written and released again. The kernel adds up a thread's pages 64 at a time; Python and torch
    make a few of their own.
    """
    if peaks.by_process(lambda between: None) is None:
        pytest.skip("this kernel does not let a process reset its high-water mark")
    assert 63 * MB <= peaks.by_process(lambda between: torch.ones(16 * MB)) < 80 * MB
    assert peaks.by_process(lambda between: None) < 8 * MB


@pytest.mark.parametrize("prompt", [False, True])
def test_memory_that_was_freed_before_is_no_room_for_a_step(prompt):
    """In a process of its own: 64 MB of blocks that glibc's heap keeps when they are freed, and a step that
    takes 48 MB. Only where every block comes from the kernel by itself all of it is seen.
    """
    job = """
import torch
from revstep_lab.bench.peaks import by_process
big = torch.ones(4 << 20); del big  # blocks of its size come from the heap from now on
held = [torch.ones(1 << 18) for _ in range(64)]; last = torch.ones(1 << 18); del held
seen = by_process(lambda between: [torch.ones(1 << 18) for _ in range(48)])
print(seen, by_process(lambda between: None, prompt=True))
"""
    env = {**os.environ, **({peaks.PROMPT: "65536"} if prompt else {})}
    run = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, env=env)
    seen, told = run.stdout.split()
    if seen == "None":
        pytest.skip("this kernel does not let a process reset its high-water mark")
    assert (int(seen) > 45 * MB) == prompt and (told != "None") == prompt, run.stderr


def test_a_kernel_that_does_not_tell(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(peaks.Path, "write_text", refuse)
    assert peaks.by_process(lambda between: None) is None


def test_cuda_counters(monkeypatch):
    """1,000 bytes before, 1,300 when forward is over, 1,900 at most since the counter was reset."""
    calls, held = [], iter([1000, 1300])
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda n=name: calls.append(n))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(held))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: calls.append("read") or 1900)
    assert peaks.by_allocator(lambda between: calls.append("step") or between(), "cuda") == {
        "kept": 300,
        "peak": 900,
    }
    assert calls == ["synchronize", "reset_peak_memory_stats", "step", "synchronize", "read"]


def test_a_child_of_its_own_measures_one_row():
    found = peaks.in_children(trunk_module.steps, CASE, ["reversible"])["reversible"]
    assert {"kept": found["kept"], "peak": found["peak"]} == peaks.by_allocator(
        trunk_module.steps(CASE, "reversible")[0]
    )
    assert found["process"] is None or 0 <= found["process"] < 64 * MB


def test_a_child_that_fails_says_why():
    with pytest.raises(RevstepError, match=r"'no such row'.*KeyError: 'no such row'"):
        peaks.in_children(trunk_module.steps, CASE, ["no such row"])


def test_the_command_shows_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        trunk_module,
        "in_children",
        lambda steps, case, names: {
            n: {"kept": 1000 * i, "peak": 2_000_000, "process": None} for i, n in enumerate(names)
        },
    )
    path = tmp_path / "step.json"
    assert (
        _cli.main(
            [
                "bench",
                *"--layers 2 --width 16 --heads 2 --batch 1 --length 8 --rounds 1".split(),
                "--json",
                str(path),
            ]
        )
        == 0
    )
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert [m["memory"]["kept"] for m in data["measurements"]] == [1000 * i for i in range(6)]
    line = next(line for line in said.splitlines() if line.startswith("reversible, keep=1"))
    assert line.split()[-5:] == ["4", "KB", "2", "MB", "-"]
