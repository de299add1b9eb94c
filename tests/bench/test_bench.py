"""The benchmark measures what it names, says where it ran, and refuses what it cannot run."""

import json

import pytest
import torch

from revstep import _cli
from revstep.errors import ConfigError
from revstep_lab.bench.runner import measure
from revstep_lab.cases.trunk import TrunkCase

TINY = "--layers 2 --width 16 --heads 2 --batch 1 --length 8 --rounds 2 --no-memory".split()


def test_ratios_are_taken_round_by_round():
    """A clock that slows down tenfold half way leaves the ratio of a twice as slow variant at two."""
    import revstep_lab.bench.runner as runner

    now, calls = 0.0, 0

    def work(cost):
        def run():
            nonlocal now, calls
            calls += 1
            now += cost * (10.0 if calls > 8 else 1.0)

        return run

    original, runner.time.perf_counter = runner.time.perf_counter, lambda: now
    try:
        one, two = measure({"one": work(1.0), "two": work(2.0)}, rounds=8, warmup=0)
    finally:
        runner.time.perf_counter = original
    assert calls == 16
    assert two.ratios["one"] == pytest.approx(2.0) and one.ratios["two"] == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_command_line(tmp_path, capsys, dtype):
    path = tmp_path / "step.json"
    assert _cli.main(["bench", *TINY, "--dtype", dtype, "--scheme", "blend", "--json", str(path)]) == 0
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    assert data["case"]["scheme"] == "blend" and data["case"]["dtype"] == dtype
    assert {"device", "date", "revstep", "torch", "threads", "commit"} <= data["environment"].keys()
    names = [m["name"] for m in data["measurements"]]
    assert {"plain", "checkpoint", "checkpoint, no early stop", "reversible", "reversible, keep=1"} <= set(
        names
    )
    assert all(name in said for name in names) and all(
        0 < m["p20"] <= m["p50"] <= m["p80"] for m in data["measurements"]
    )
    for goal in data["goals"]:
        assert goal["met"] == (goal["value"] <= goal["goal"]) and goal["what"] in said


def test_reversible_variants_really_rebuild():
    """Every reversible row rebuilds its states on each measured step; the float row is the only
    inexact one.
    """
    from revstep_lab.cases.trunk import _trunks

    trunks = _trunks(TrunkCase(layers=3, width=16, heads=2, batch=1, length=8))
    for name, trunk in trunks.items():
        if name.startswith("reversible"):
            trunk(torch.randn(1, 8, 16, requires_grad=True)).sum().backward()
            assert trunk.report.exact == ("float" not in name)
            assert trunk.report.layers == (2 if "keep=1" in name else 3)


@pytest.mark.parametrize(
    "wrong, match",
    [
        ({"dtype": "int8"}, "dtype"),
        ({"device": "warp"}, "device"),
        ({"layers": 0}, "layers"),
        ({"batch": 0}, "batch"),
    ],
)
def test_refused(wrong, match):
    with pytest.raises(ConfigError, match=match):
        TrunkCase(**wrong)


def test_refused_on_the_command_line(capsys):
    assert _cli.main(["bench", *TINY, "--scheme", "blent"]) == 2
    assert "unknown scheme 'blent'" in capsys.readouterr().err
    assert _cli.main(["bench", *TINY, "--rounds", "0"]) == 2
