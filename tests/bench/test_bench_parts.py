"""Kernels, the price of exactness, the stack beside its blocks: each benchmark counts what it says and can
miss its goals.
"""

import json
import math
import types

import pytest
import torch

from revstep import _cli, ops
from revstep.errors import ConfigError
from revstep_lab.bench import runner
from revstep_lab.cases import kernels, overhead, price
from revstep_lab.cases.kernels import KernelCase
from revstep_lab.cases.trunk import TrunkCase

TINY = "--layers 2 --width 16 --heads 2 --batch 1 --length 8 --rounds 2".split()
CASE = TrunkCase(layers=3, width=32, heads=2, batch=2, length=8, scheme="blend")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    assert torch.get_num_threads() == 1, "a benchmark left another number of threads"
    torch.set_num_threads(before)


def run(tmp_path, capsys, *arguments):
    path = tmp_path / "out.json"
    assert _cli.main(["bench", *arguments, "--json", str(path)]) == 0
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert {"device", "date", "revstep", "torch", "threads", "commit"} <= data["environment"].keys()
    for g in data["goals"]:
        assert g["what"] in said and g["met"] == (
            g["value"] >= g["goal"] if g["at_least"] else g["value"] <= g["goal"]
        )
    return said, data


# ---- kernels ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bytes_are_those_of_the_tensors(dtype, monkeypatch):
    """Counted again from what each operator is given and returns; statistics, which do not grow, apart."""
    seen = []
    for name in ("step", "inverse", "encode", "decode", "checksum", "scale"):
        real = getattr(ops, name)
        monkeypatch.setattr(
            ops, name, lambda *args, real=real: seen.append((args, real(*args))) or seen[-1][1]
        )
    for name, kernel in kernels.kernels(6400, dtype, "cpu").items():
        seen.clear()
        kernel.call()
        ((args, out),) = seen
        tensors = [
            t
            for t in (*args, *(out if isinstance(out, (tuple, list)) else [out]))
            if isinstance(t, torch.Tensor) and t.numel() > 4
        ]
        assert kernel.nbytes == sum(t.numel() * t.element_size() for t in tensors), name


def test_a_copy_moves_as_many_bytes():
    for nbytes, copy in zip((2**14, 2**16), kernels.copies((2**14, 2**16), "cpu")):
        assert 2 * copy().nbytes == nbytes


def test_kernels_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(kernels, "_WORK", 2**13)
    said, data = run(
        tmp_path, capsys, "kernels", "--sizes", "64", "4096", "--thread-counts", "1", "2", "--rounds", "1"
    )
    names = list(kernels.kernels(64, torch.float32, "cpu"))
    assert [(r["kernel"], r["n"], r["threads"]) for r in data["rows"]] == [
        (k, n, t) for t in (1, 2) for n in (64, 4096) for k in names
    ]
    assert all(name in said for name in names) and [r["kernel"] for r in data["overhead"]] == [
        "torch.add",
        *names,
    ]
    for row in data["rows"]:
        for found in (row["fresh"], row["retained"]):
            assert found is None or min(found["gb_s"], found["copy_gb_s"], found["of_copy"]) > 0
    # Nothing was large.
    assert [g["what"] for g in data["goals"]] == ["a call on 64 elements, dearest operator / torch.add"]


def test_bandwidth_is_bytes_over_time(monkeypatch):
    """A kernel that takes a second and a copy that takes half of one: half the copy's bandwidth, and its goal
    is missed.
    """

    def fake(variants, *_):
        times = {name: 0.5 if name.startswith("copy, ") else 1.0 for name in variants}
        return [
            runner.Measurement(n, t, t, t, {o: t / other for o, other in times.items() if o != n})
            for n, t in times.items()
        ]

    monkeypatch.setattr(kernels, "_measure", fake)
    rows = kernels._bandwidth(2**16, torch.float32, "cpu", 1, 1, "retained", True)
    step = rows[0]
    once = 16 * kernels._WORK / 1e9  # of 16 calls on 2^16 elements of 16 bytes
    assert step["retained"] == {
        "gb_s": once,
        "p20_gb_s": once,
        "p80_gb_s": once,
        "copy_gb_s": 2 * once,
        "of_copy": 0.5,
    }
    large = [{**row, "n": kernels.LARGE} for row in rows]
    called = [
        {"kernel": "torch.add", "seconds": 1, "of_add": 1.0},
        {"kernel": "a", "seconds": 1, "of_add": 4.9},
    ]
    goals = kernels._goals(large, called)
    assert [g["met"] for g in goals] == [False] * len(rows) + [True]
    large[0]["retained"] = {**step["retained"], "of_copy": 0.95}
    assert kernels._goals(large, called)[0]["met"]
    called[1]["of_add"] = 5.1
    assert not kernels._goals(large, called)[-1]["met"]


@pytest.mark.parametrize("answer", [0, 1])
def test_the_c_library_is_told_and_told_again(answer, monkeypatch):
    """Large bounds within, its own after, also when the measurement raises; and nothing is claimed where it
    refuses.
    """
    told = []
    library = types.SimpleNamespace(mallopt=lambda what, value: told.append((what, value)) or answer)
    monkeypatch.setattr(runner.ctypes, "CDLL", lambda _: library)
    with pytest.raises(ZeroDivisionError), runner.retained() as there:
        assert there == bool(answer) and told[0] == (-3, 2**30 - 1)
        1 / 0  # noqa: B018
    assert told[1:] == ([(-1, 2**31 - 1), (-3, 2**17), (-1, 2**17)] if answer else [])
    del library.mallopt
    with runner.retained() as there:
        assert not there


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"sizes": ()}, "sizes"),
        ({"sizes": (8,)}, "sizes"),
        ({"thread_counts": (0,)}, "thread_counts"),
        ({"dtype": "float64"}, "dtype"),
        ({"device": "warp"}, "device"),
    ],
)
def test_kernels_refused(wrong, match):
    with pytest.raises(ConfigError, match=match):
        KernelCase(**wrong)


# ---- the price of exactness ----


def test_price_command_line(tmp_path, capsys):
    said, data = run(tmp_path, capsys, "price", *TINY, "--schemes", "blend", "hamiltonian")
    names = [
        f"{scheme}, {state}"
        for scheme in ("blend", "hamiltonian")
        for state in ("fixed point", "float state")
    ]
    assert [m["name"] for m in data["measurements"]] == names and "scheme" not in data["case"]
    for fixed, floating, g in zip(data["measurements"][::2], data["measurements"][1::2], data["goals"]):
        assert (
            fixed["name"] in said
            and fixed["ratios"][floating["name"]] == g["value"]
            and g["goal"] == price.TO_FLOAT_STATE
        )
    assert _cli.main(["bench", "price", "--schemes", "blent"]) == 2
    assert "schemes has 'blent'" in capsys.readouterr().err


def test_price_compares_exact_with_float(monkeypatch):
    """On the same weights; all schemes unless some are named."""
    stacks = {state: price._stack(CASE, state) for state in (price.FixedPoint(), price.Float())}
    for state, stack in stacks.items():
        stack(torch.randn(2, 8, 32, requires_grad=True)).sum().backward()
        assert stack.report.exact == state.exact
    one, two = (dict(s.named_parameters()) for s in stacks.values())
    assert all(torch.equal(one[name], two[name]) for name in one)
    fake = (
        runner.Measurement("fixed", 1.0, 1.0, 1.0, {"float": 1.03}),
        runner.Measurement("float", 1.0, 1.0, 1.0, {"fixed": 0.97}),
    )
    monkeypatch.setattr(price, "_pair", lambda case, rounds: fake)
    result = price.run_price(CASE)
    assert (
        len(result["measurements"]) == 12
        and len(result["goals"]) == 6
        and not any(g["met"] for g in result["goals"])
    )


# ---- beside the blocks ----


def test_overhead_command_line(tmp_path, capsys):
    said, data = run(tmp_path, capsys, "overhead", *TINY)
    assert (
        data["case"]["layers"] == 2
        and data["case"]["width"] == 16
        and [m["name"] for m in data["measurements"]]
        == ["stack", "blocks alone", "torch checkpoint of every block"]
    )
    assert (
        data["share"] == pytest.approx(1 - data["measurements"][1]["ratios"]["stack"])
        and "blocks alone" in said
    )
    assert math.isclose(data["beside"], sum(p["seconds"] for p in data["profile"]) / data["profile_seconds"])


def test_blocks_alone_do_what_a_stack_asks_of_its_blocks():
    """Each block evaluated twice and differentiated once; weights get gradients."""
    blocks = overhead.blocks_of(CASE)
    calls = []
    for block in blocks:
        block.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    x = torch.randn(CASE.batch, CASE.length, CASE.width)
    overhead.blocks_alone(CASE, blocks, x)()
    assert len(calls) == 2 * CASE.layers and all(calls)
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for block in blocks for p in block.parameters())
    calls.clear()
    overhead.one_step(CASE, overhead.ReversibleStack(blocks, overhead.make("blend")), x)()
    assert len(calls) == 2 * CASE.layers


def test_the_profile_names_the_stacks_parts_and_no_blocks():
    blocks = overhead.blocks_of(CASE)
    x = torch.randn(CASE.batch, CASE.length, CASE.width)
    parts, total = overhead.profiled(
        overhead.one_step(CASE, overhead.ReversibleStack(blocks, overhead.make("blend")), x), "cpu"
    )
    calls = {part["part"]: part["calls"] for part in parts}
    assert (
        calls["Step"] == calls["StepBackward"] == calls["revstep::inverse"] == CASE.layers
        and calls["Start"] == 1
    )
    assert calls["sums of gradients of states"] >= CASE.layers - 1 and not any(
        "Addmm" in name or "layer_norm" in name for name in calls
    )
    assert 0 < sum(part["seconds"] for part in parts) < total
    alone, _ = overhead.profiled(overhead.blocks_alone(CASE, blocks, x), "cpu")
    assert alone == []
