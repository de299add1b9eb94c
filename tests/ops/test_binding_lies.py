"""The extension called directly, with null pointers and sizes that lie: an exception, never the end of the
process. Each call is made in a forked child. What a pointer that is not null points to, nobody can check.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from revstep import _C

I32, F32 = _C.dtypes()["int32"], _C.dtypes()["float32"]
N = 8
#: Alive as long as the calls.
STATE, OUT, VALUE = torch.zeros(N, dtype=torch.int32), torch.zeros(N, dtype=torch.int32), torch.zeros(N)
VIEW, STATS, CARRY = torch.zeros(N), torch.zeros(4, dtype=torch.int64), torch.zeros(N, 8, dtype=torch.int32)
CHOICE = torch.zeros(N, dtype=torch.uint8)
WIDE, AT = torch.zeros(2, 4, 2, dtype=torch.int64), torch.zeros(2, dtype=torch.int32)
MOST = 2**63 - 1


def at(tensor):
    return tensor.data_ptr()


STEP = dict(
    n=N, source=at(STATE), cur=at(STATE), value=at(VALUE), out=at(OUT), view=at(VIEW), carry=at(CARRY),
    stats=at(STATS),
    state=I32, value_type=F32, view_type=F32, alpha=0.5, beta=0.5, gamma=1.0, frac_bits=10, carry_bits=1,
)  # fmt: skip
GOOD = {
    "step": ("StepArgs", STEP),
    "inverse": ("StepArgs", STEP),
    "encode": (
        "EncodeArgs",
        dict(
            n=N, x=at(VALUE), out=at(OUT), view=at(VIEW), stats=at(STATS), value_type=F32, state=I32,
            view_type=F32,
            frac_bits=10,
        ),
    ),
    "decode": ("DecodeArgs", dict(n=N, state_data=at(STATE), view=at(VIEW), state=I32, view_type=F32,
    frac_bits=10)),
    "differs": ("DecodeArgs", dict(n=N, state_data=at(STATE), view=at(VIEW), state=I32, view_type=F32,
    frac_bits=10)),
    "checksum": ("ChecksumArgs", dict(n=N, data=at(STATE), stats=at(STATS), state=I32)),
    "scale": (
        "ScaleArgs",
        dict(n=N, g=at(VALUE), out=[at(VIEW)], factors=[0.5], value_type=F32, last_type=F32),
    ),
}  # fmt: skip
#: Of every field of its kind.
LIES = {
    "pointer": (0,),
    "n": (-1, -(2**63), MOST, 2**60),
    "dtype": (-1, 6, 2**31 - 1),
    "frac_bits": (-1, 31, 2**31 - 1),
    "carry_bits": (-1, 0, 9, 2**31 - 1),
    "number": (float("nan"), float("inf"), 1e300),
}
KIND = {
    "n": "n",
    "frac_bits": "frac_bits",
    "carry_bits": "carry_bits",
    "alpha": "number",
    "beta": "number",
} | {name: "dtype" for name in ("state", "value_type", "view_type", "last_type")}
#: Null is allowed: no view is wanted.
OPTIONAL = {("step", "view"), ("inverse", "view"), ("encode", "view")}


def kernel_lies():
    for kernel, (_, fields) in GOOD.items():
        for name in fields:
            kind = KIND.get(name, "pointer" if isinstance(fields[name], int) else None)
            for lie in LIES.get(kind, ()):
                if (kernel, name) in OPTIONAL or (kernel, name, lie) == ("step", "carry_bits", 0):
                    continue
                yield pytest.param(kernel, {name: lie}, id=f"{kernel}-{name}-{lie}")
    yield pytest.param("scale", {"out": [0]}, id="scale-out-null")
    yield pytest.param("scale", {"out": [], "factors": []}, id="scale-nothing")
    yield pytest.param("scale", {"out": [at(VIEW)] * 9, "factors": [0.5] * 9}, id="scale-too-many")
    yield pytest.param("scale", {"factors": []}, id="scale-factors")


def call_kernel(kernel, change, rows=None, threads=1, isa=-1):
    struct, fields = GOOD[kernel]
    args = getattr(_C, struct)(**fields | change)
    if rows is not None:
        args.by_row(rows=_C.Rows(**rows), alpha=0.5, beta=0.5, gamma=1.0)
    getattr(_C, kernel)(args, threads, isa)


def in_child(call):
    """How a forked child ended that made the call: "raised", "returned", or "signal N"."""
    child = os.fork()
    if child == 0:
        code = 3
        try:
            call()
            code = 0
        except Exception:
            code = 1
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return (
        f"signal {os.WTERMSIG(status)}"
        if os.WIFSIGNALED(status)
        else ["returned", "raised"][os.WEXITSTATUS(status)]
    )


@pytest.mark.parametrize("kernel", GOOD)
def test_the_truth_is_taken(kernel):
    assert in_child(lambda: call_kernel(kernel, {})) == "returned"


@pytest.mark.parametrize("kernel, lie", list(kernel_lies()))
def test_a_lie_to_a_kernel_raises(kernel, lie):
    assert in_child(lambda: call_kernel(kernel, lie)) == "raised"


@pytest.mark.parametrize(
    "rows",
    [
        {"choice": 0, "length": 4},
        {"choice": at(CHOICE), "length": 0},
        {"choice": at(CHOICE), "length": -4},
        {"choice": at(CHOICE), "length": 3},
        {"choice": at(CHOICE), "length": 2**62},
    ],
    ids=["no choices", "no length", "a negative length", "no divisor", "beyond all"],
)
def test_a_lie_about_rows_raises(rows):
    assert in_child(lambda: call_kernel("step", {}, rows)) == "raised"


# ---- the same by position ----


def call_by_position(kernel, change, rows=None):
    f = GOOD[kernel][1] | change
    last = f.get("view_type", f.get("last_type", F32))
    kind = _C.Kind(
        state=f.get("state", F32), value_type=f.get("value_type", F32), view_type=last,
        frac_bits=f.get("frac_bits", 0),
    )  # fmt: skip
    if kernel in ("step", "inverse"):
        names = (
            "n", "source", "cur", "value", "out", "view", "carry", "stats", "alpha", "beta", "gamma",
            "carry_bits",
        )  # fmt: skip
        given = *(f[name] for name in names), 1
        if rows is None:
            getattr(_C, f"{kernel}_of")(kind, *given)
        else:
            assert getattr(_C, f"{kernel}_by_row")(kind, *given, *rows, 0.5, 0.5, 1.0)
    elif kernel == "encode":
        _C.encode_of(kind, f["n"], f["x"], f["out"], f["view"], f["stats"], 1)
    elif kernel == "decode":
        _C.decode_of(kind, f["n"], f["state_data"], f["view"], 1)
    else:
        assert _C.scale_of(kind, f["n"], f["g"], f["out"], f["factors"], 1, *(rows or (0, 0)), [0.5] * 4)


BY_POSITION = ("step", "inverse", "encode", "decode", "scale")


@pytest.mark.parametrize("kernel", BY_POSITION)
def test_the_truth_by_position_is_taken(kernel):
    assert in_child(lambda: call_by_position(kernel, {})) == "returned"


@pytest.mark.parametrize(
    "kernel, lie", [p for p in kernel_lies() if p.values[0] in BY_POSITION and "state" not in p.values[1]]
)
def test_a_lie_by_position_raises(kernel, lie):
    assert in_child(lambda: call_by_position(kernel, lie)) == "raised"


@pytest.mark.parametrize("kernel", ["step", "inverse"])
@pytest.mark.parametrize(
    "rows", [(0, 2), (at(CHOICE), -1), (at(CHOICE), 3), (at(CHOICE), 2**62)], ids=range(4)
)
def test_a_lie_about_rows_by_position_raises(kernel, rows):
    assert in_child(lambda: call_by_position(kernel, {}, rows)) == "raised"


def call_by_threads(threads):
    """Elements enough for as many threads as are asked for, and fewer are taken."""
    big = torch.zeros(1 << 20, dtype=torch.int32)
    call_kernel("checksum", {"n": big.numel(), "data": at(big)}, threads=threads)


@pytest.mark.parametrize("threads", [2**31 - 1, -5])
def test_no_number_of_threads_ends_the_process(threads):
    """In a process of its own: OpenMP's threads are not in a forked one, which would wait for them."""
    here = Path(__file__)
    code = f"import {here.stem}; {here.stem}.call_by_threads({threads})"
    path = os.pathsep.join([str(here.parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, capture_output=True, timeout=300
    )
    assert done.returncode == 0, done.stderr.decode()


SAMPLES = {
    "null": dict(data=0),
    "width": dict(width=3),
    "no width": dict(width=0),
    "every": dict(every=0),
    "one stride": dict(stride=[1]),
    "negative size": dict(size=[-2, 4]),
    "negative stride": dict(stride=[-4, 1]),
    "size": dict(size=[2**62, 4]),
    "stride": dict(stride=[2**62, 1]),
    "product": dict(size=[2**40, 2**40], stride=[2**40, 1]),
    "dimensions": dict(size=[2] * 20, stride=[2 * 3**k for k in range(20)]),
}


@pytest.mark.parametrize("lie", SAMPLES.values(), ids=SAMPLES)
def test_a_lie_to_the_fingerprint_raises(lie):
    good = dict(data=at(STATE), width=4, size=[2, 4], stride=[4, 1], every=1, seed=0)
    assert in_child(lambda: _C.sample(**good)) == "returned"
    assert in_child(lambda: _C.sample(**good | lie)) == "raised"


def integrate(**changes):
    run = _C.OdeRun()
    program = changes.pop("program", ([micro()], [1]))
    tableau = changes.pop("tableau", None)
    field = changes.pop("field", (1, [1.0]))
    good = dict(
        batch=4, dim=2, slots=(at(WIDE), at(WIDE[1])), fixed=True, frac_bits=(at(AT), at(AT)), steps=2, h=0.1,
        carry=at(CARRY), carry_stride=8, threads=1, isa=-1,
    )  # fmt: skip
    for name, value in (good | changes).items():
        setattr(run, name, value)
    run.program(*program)
    run.field(*field)
    if tableau is not None:
        run.tableau(*tableau)
    return run()


def micro(**changes):
    good = dict(slot=0, function=0, rk_sign=0, alpha=1.0, beta=0.0, gamma=0.1, tau=0.0)
    return _C.OdeMicro(**good | changes)


RUNS = {
    "no slots": lambda: integrate(slots=(0, 0)),
    "one slot": lambda: integrate(slots=(at(WIDE), 0)),
    "one slot twice": lambda: integrate(slots=(at(WIDE), at(WIDE))),
    "no units": lambda: integrate(frac_bits=(0, 0)),
    "one unit": lambda: integrate(frac_bits=(at(AT), 0)),
    "batch": lambda: integrate(batch=2**62),
    "negative batch": lambda: integrate(batch=-1),
    "dim": lambda: integrate(dim=2**31),
    "no dim": lambda: integrate(dim=0),
    "steps": lambda: integrate(steps=2**63 - 1),
    "negative steps": lambda: integrate(steps=-1),
    "position": lambda: integrate(position=2**63 - 1),
    "undo too many": lambda: integrate(undo=True, position=1),
    "no program": lambda: integrate(program=([], [])),
    "counts": lambda: integrate(program=([micro()], [2])),
    "negative counts": lambda: integrate(program=([micro()], [-1, 1])),
    "slot": lambda: integrate(program=([micro(slot=2)], [1])),
    "function": lambda: integrate(program=([micro(function=7)], [1])),
    "second function": lambda: integrate(program=([micro(function=1)], [1])),
    "no tableau": lambda: integrate(program=([micro(rk_sign=1)], [1])),
    "half a tableau": lambda: integrate(tableau=([0.0], [1.0, 2.0], [0.0])),
    "stages": lambda: integrate(tableau=([0.0] * 10000, [1.0] * 100, [0.0] * 100)),
    "alpha": lambda: integrate(program=([micro(alpha=float("nan"))], [1])),
    "no field": lambda: integrate(field=(99, [1.0])),
    "negative field": lambda: integrate(field=(-1, [1.0])),
    "no function": lambda: integrate(field=(0, [])),
    "no parameters": lambda: integrate(field=(1, [])),
    "bodies": lambda: integrate(field=(6, [float("nan"), 0.0, 1.0])),
    "space": lambda: integrate(field=(6, [1e300, 0.0, 1.0])),
    "no save_every": lambda: integrate(save_every=-1),
    "until_save": lambda: integrate(save_every=2, until_save=9),
    "carry row": lambda: integrate(program=([micro(alpha=0.5)], [1]), carry_stride=0),
    "negative carry row": lambda: integrate(program=([micro(alpha=0.5)], [1]), carry_stride=-8),
    "carry place": lambda: integrate(program=([micro(alpha=0.5)], [1]), carry_at=10**6),
    "negative carry place": lambda: integrate(program=([micro(alpha=0.5)], [1]), carry_at=-64),
    "undone carries": lambda: integrate(program=([micro(alpha=0.5)], [1]), undo=True, position=2, carry_at=0),
    "carries of many steps": lambda: integrate(program=([micro(alpha=0.5)], [1]), steps=2**61),
    "lanes": lambda: integrate(lanes=-8),
    "odd lanes": lambda: integrate(lanes=3),
    "bad": lambda: integrate(bad=at(WIDE)),
    "isa": lambda: integrate(isa=99),
    "math": lambda: _C.ode_math(0, 0, 0, 8, -1),
    "math of nothing": lambda: _C.ode_math(7, at(VIEW), at(VIEW), 1, -1),
    "math of many": lambda: _C.ode_math(0, at(VIEW), at(VIEW), 2**62, -1),
}


@pytest.mark.parametrize("lie", RUNS.values(), ids=RUNS)
def test_a_lie_to_the_loop_raises(lie):
    assert in_child(integrate) == "returned"
    assert in_child(lie) == "raised"


@pytest.mark.skipif(_C.built_with_cuda(), reason="a build with CUDA has these kernels")
@pytest.mark.parametrize("kernel", [name for name in GOOD if name != "differs"])
def test_a_build_without_cuda_says_so(kernel):
    """And so does cuda_status, without an exception."""
    struct, fields = GOOD[kernel]
    with pytest.raises(RuntimeError) as refusal:
        getattr(_C, f"{kernel}_cuda")(getattr(_C, struct)(**fields), 0)
    assert str(refusal.value) == _C.cuda_status() and "CUDA" in _C.cuda_status()
