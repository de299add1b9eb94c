"""``revstep bench compile`` measures what it names."""

import json

import stacks
import torch
from compiled import graphs

from revstep import _cli
from revstep_lab.bench import peaks
from revstep_lab.cases import compile as case
from revstep_lab.cases import keep
from revstep_lab.cases.trunk import TrunkCase

TINY = "compile --layers 2 --width 16 --heads 2 --batch 1 --length 8 --rounds 2 --no-memory".split()


def test_command_line(tmp_path, capsys, monkeypatch):
    """aot_eager in the place of inductor: the rows are the same, and nothing has to be built."""
    run = case.run_compiled
    monkeypatch.setattr(
        case, "run_compiled", lambda c, rounds, memory: run(c, rounds, memory, backend="aot_eager")
    )
    path = tmp_path / "compile.json"
    assert _cli.main(["bench", *TINY, "--json", str(path)]) == 0
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert {"device", "date", "revstep", "torch", "threads", "commit"} <= data["environment"].keys()
    assert [m["name"] for m in data["measurements"]] == [*case.trunks(TrunkCase(layers=1, width=16, heads=2))]
    assert all(m["name"] in said for m in data["measurements"]) and data["exact"]
    assert data["graphs"]["during"] == 0 and data["graphs"]["before"] >= 2
    for goal in data["goals"]:
        assert goal["met"] == (goal["value"] <= goal["goal"])


def test_bytes_are_those_of_the_step():
    """An uncompiled row, counted as the benchmark over kept layers counts it; the loss is in it, four bytes,
    and its output still.
    """
    small = TrunkCase(layers=3, width=16, heads=2, batch=1, length=8)
    ours, theirs = (
        peaks.by_allocator(steps(small, name)[0], "cpu")
        for steps, name in ((case.steps, "reversible"), (keep.steps, "keep=0"))
    )
    assert ours["kept"] - theirs["kept"] == 4 and theirs["kept"] > 0


def test_rows_do_what_they_are_called():
    trunks = case.trunks(TrunkCase(layers=2, width=16, heads=2, batch=1, length=8), backend="aot_eager")
    x = torch.randn(1, 8, 16, requires_grad=True)
    gradients = {}
    for name, trunk in trunks.items():
        before = graphs()
        gradients[name] = stacks.run(trunk, x)
        assert (graphs() > before) == (name == "plain, compiled")  # the others run what it has compiled
        if name.startswith("reversible"):
            assert trunk.report.exact and trunk.report.layers == (1 if "keep=1" in name else 2)
    # The sums of a backward formula stand in another order: at most 1000 roundings of float32 in two layers.
    for kind in ("plain", "reversible"):
        for a, b in zip(gradients[kind], gradients[f"{kind}, compiled"]):
            assert float((a - b).norm()) <= 1000 * torch.finfo(torch.float32).eps * float(b.norm())
    assert not stacks.same(gradients["plain"], gradients["reversible"])
