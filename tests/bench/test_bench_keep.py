"""The table over keep counts bytes as autograd does, and its goals can be missed."""

import json

import pytest
import torch

from revstep import _cli
from revstep.errors import ConfigError
from revstep_lab.bench import peaks
from revstep_lab.cases import keep
from revstep_lab.cases.trunk import TrunkCase

CASE = TrunkCase(layers=8, width=16, heads=2, batch=2, length=8, scheme="blend")


def test_command_line(tmp_path, capsys):
    path = tmp_path / "keep.json"
    assert (
        _cli.main(
            [
                "bench",
                "keep",
                *"--layers 8 --width 16 --heads 2 --batch 1 --length 8 --rounds 2 --no-memory".split(),
                "--json",
                str(path),
            ]
        )
        == 0
    )
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    names = ["plain", "keep=0", "keep=1", "keep=2", "keep=4", "keep=8"]
    assert [m["name"] for m in data["measurements"]] == names and all(name in said for name in names)
    assert {"device", "date", "revstep", "torch", "commit"} <= data["environment"].keys()
    assert _cli.main(["bench", "keep", "--steps", "3"]) != 0


def saved(trunk):
    """Bytes that autograd keeps, by a pack hook; parameters and the input not counted."""
    x, found = torch.randn(CASE.batch, CASE.length, CASE.width, requires_grad=True), {}
    leaves = {t.untyped_storage().data_ptr() for t in (x, *trunk.parameters())}
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: found.setdefault(t.untyped_storage().data_ptr(), t), lambda t: t
    ):
        y = trunk(x)
    assert y.requires_grad
    return sum(t.untyped_storage().nbytes() for address, t in found.items() if address not in leaves)


def test_bytes_are_those_of_the_graphs():
    """One more kept layer adds its saved tensors and spares its carry: two bits an element."""
    trunks = keep._trunks(CASE)
    counted = {name: peaks.by_allocator(keep.steps(CASE, name)[0], "cpu") for name in trunks}
    kept = {int(name.removeprefix("keep=")): row["kept"] for name, row in counted.items() if name != "plain"}
    graph = (saved(trunks["keep=4"]) - saved(trunks["keep=2"])) / 2
    elements = CASE.batch * CASE.length * CASE.width
    assert kept[2] - kept[1] == (kept[4] - kept[2]) / 2 == graph - elements * 2 / 8
    # The output, and what goes into the loss.
    assert kept[0] - (saved(trunks["keep=0"]) + 8 * elements * 2 / 8) < 2 * 4 * elements
    assert all(row["peak"] >= row["kept"] for row in counted.values())


def test_goals_can_be_missed():
    times = {f"keep={k}": {"plain": 1.3 - 0.3 * k / 8} for k in keep.depths(8)}
    counted = {"plain": {"kept": 800}} | {f"keep={k}": {"kept": 100 * k + 1} for k in keep.depths(8)}
    assert all(goal["met"] for goal in keep._goals(CASE, counted, times))
    times["keep=8"] = {"plain": 1.2}
    counted["keep=2"]["kept"] = 50
    assert [goal["met"] for goal in keep._goals(CASE, counted, times)] == [False, False, False, True]
    assert [goal["what"] for goal in keep._goals(CASE, {}, times)] == [
        "step time falls with keep",
        "step time, keep=8 / plain",
    ]


def test_few_layers():
    assert keep.depths(1) == [0, 1] and keep.depths(12) == [0, 1, 3, 6, 12]
    with pytest.raises(ConfigError, match="layers is 0"):
        TrunkCase(layers=0)
