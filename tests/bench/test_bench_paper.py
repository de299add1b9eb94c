"""The largest batch is found by steps that run or run out of memory, and by nothing else; growth is what it
is called.
"""

import json
import math

import pytest
import torch

from revstep import _cli
from revstep.errors import ConfigError, RevstepError
from revstep_lab.bench import peaks, training
from revstep_lab.bench.results import draw_curves
from revstep_lab.bench.runner import Measurement, per
from revstep_lab.cases import _growth as growth
from revstep_lab.cases import paper
from revstep_lab.cases.trunk import TrunkCase

TINY = training.Model(2, 16, 2, 512, 32)


# ---- the search ----


def right(found, limit):
    return found <= limit and limit - found <= found // 16


@pytest.mark.parametrize(
    "limit, most", [(1, 100), (7, 100), (100, 100), (63, 4096), (64, 4096), (1000, 4096), (0, 100)]
)
def test_search_finds_the_limit(limit, most):
    """To within a sixteenth, from below, and trying few."""
    tried = []
    found = growth.largest(lambda batch: tried.append(batch) or batch <= limit, most)
    assert right(found, limit) and max(tried) <= most and len(tried) <= 20


def test_a_search_that_is_wrong_is_found():
    """One that returns the first batch that fails, and one that stops after doubling."""
    assert not right(growth.largest(lambda batch: batch <= 7, 100) + 1, 7)
    assert not right(growth.largest(lambda batch: batch <= 63, 4096, part=1), 63)


@pytest.mark.parametrize("holds, found", [(64, 64), (60, 60), (50, 48), (0, 0)])
def test_a_run_that_dies_lowers_the_batch(holds, found):
    tried = []
    assert growth.confirmed(64, lambda batch: tried.append(batch) or batch <= holds) == found
    assert tried[0] == 64 and tried == sorted(set(tried), reverse=True)


def test_line_through_growth():
    a, b, off = growth.line([8, 16, 32, 64], [2 + 3 * x for x in (8, 16, 32, 64)])
    assert (a, b) == (pytest.approx(2), pytest.approx(3)) and off < 1e-9
    assert growth.line([8, 16, 32, 64], [x**1.2 for x in (8, 16, 32, 64)])[2] > 0.05
    with pytest.raises(ConfigError, match="2 points"):
        growth.line([1, 2], [1, 2])


# ---- real steps under a real limit ----


def test_out_of_memory_is_told_apart():
    limited = training.Model(2, 16, 2, 512, 32, limit=24 << 20)
    with training.Worker(limited, 1) as worker:
        assert len(worker.steps(2, 2)) == 2
        with pytest.raises(training.OutOfMemory, match="memory"):
            worker.steps(4096, 1)
    with (
        training.Worker(TINY, 1) as worker,
        pytest.raises(RevstepError, match=r"ended with 1 on .*RuntimeError"),
    ):
        worker.steps(-1, 1)  # no memory is missing here


def test_what_says_that_memory_is_missing():
    assert training.is_out_of_memory(MemoryError()) and training.is_out_of_memory(
        RuntimeError("DefaultCPUAllocator: can't allocate memory")
    )
    assert not training.is_out_of_memory(RuntimeError("shapes differ")) and not training.is_out_of_memory(
        ValueError("out of memory")
    )


def test_chunked_and_reversible_trains_where_stored_does_not():
    """By real steps under one limit."""
    case, held = paper.PaperCase(memory_limit=48), {}
    for way, chunked in ((paper.STANDARD, False), (paper.REVERSIBLE, True)):
        tries = paper.Tries(case.model((6, 32, 2), 32, 0, scheme=paper.WAYS[way], chunked=chunked))
        held[way] = tries.hold(40, paper.TRY)
        tries.close()
    assert held == {paper.STANDARD: False, paper.REVERSIBLE: True}


class Fake:
    """A training process that holds ``two`` samples for a try, ``long`` for a run of varying length, and
    ``timed`` where steps are timed one by one.
    """

    two, long, timed = 60, 50, 45
    made = 0

    def __init__(self, *_):
        type(self).made += 1
        self.over = False

    def steps(self, batch, count, vary=False):
        assert not self.over, "a process that ran out of memory was used again"
        if batch > (self.timed if count == 1 else self.long if vary else self.two):
            self.over = True
            raise training.OutOfMemory("no memory")
        return [0.1] * count

    def close(self):
        self.over = True

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def test_the_batch_is_the_one_that_trains(monkeypatch):
    """Found by two steps, lowered by the longer run, and lowered again where it dies while it is timed; the
    others are timed with it again.
    """
    monkeypatch.setattr(paper, "Worker", Fake)
    found = paper.largest_batch(TINY, 4096)
    assert 53 <= found["tried"] <= 60 and 44 <= found["batch"] <= 50
    batches = {"standard": 8, "reversible": 50}
    rows = paper._in_turn(dict.fromkeys(batches, TINY), batches, 2, 8)
    assert batches == {"standard": 8, "reversible": 44} and [m.name for m in rows] == [
        "standard",
        "reversible",
    ]
    monkeypatch.setattr(Fake, "timed", 0)
    assert paper._in_turn({"standard": TINY}, {"standard": 2}, 2, 8) == []


def test_throughput_is_of_each_ways_own_batch(monkeypatch):
    """Steps of three processes in turn; samples a second are the batch over the seconds of a step, and the
    table and the goals say the ratio of those.
    """
    monkeypatch.setattr(paper, "DEPTHS", (2,))
    monkeypatch.setattr(
        paper,
        "largest_batch",
        lambda model, most: {"batch": {"plain": 2, "checkpoint": 3, "midpoint": 4}[model.scheme]},
    )
    part = paper.throughput(paper.PaperCase(), 2, False)
    rows = {row["name"]: row for row in part["rows"]}
    assert {name: row["batch"] for name, row in rows.items()} == {
        "standard": 2,
        "checkpoint": 3,
        "reversible": 4,
    }
    for row in rows.values():  # p50 is seconds a sample
        assert row["samples_per_second"] == pytest.approx(1 / row["p50"]) and row["layers"] == 2
    faster = {g["what"].rsplit(" / ", 1)[1]: g["value"] for g in part["goals"]}
    assert faster == {other: rows[other]["ratios"]["reversible"] for other in ("standard", "checkpoint")}
    (_, header, cells), = paper.tables({"parts": {"throughput": part}})  # fmt: skip
    assert header[0] == "layers" and [c[2] for c in cells] == ["2", "3", "4"]
    slow = {
        m.name: m
        for m in per(
            [Measurement("a", 1, 1, 1, {"b": 0.5}), Measurement("b", 2, 2, 2, {"a": 2.0})],
            {"a": 1.0, "b": 4.0},
        )
    }
    # Twice the seconds for four times the samples: b is twice as fast.
    assert slow["a"].ratios["b"] == 2.0 and slow["b"].p50 == 0.5


def test_the_largest_batch_of_each_way_and_size(monkeypatch):
    """With and without the chunked loss; the goal is of ours with it beside the standard way without."""
    asked = []

    def largest(model, most):
        asked.append((model.scheme, model.chunked, model.layers, model.width, model.heads))
        held = {"plain": 4, "checkpoint": 6, "midpoint": 9}[model.scheme] * (1 + model.chunked)
        return {"tried": held + 1, "batch": 0 if model.width == 64 and model.scheme == "plain" else held}

    monkeypatch.setattr(paper, "largest_batch", largest)
    monkeypatch.setattr(paper, "SMALL_SIZES", {"small": (2, 32, 2), "medium": (2, 64, 2)})
    case = paper.PaperCase(models=("small", "medium"), memory_limit=7, most=11)
    part = paper.batch(case, 1, False)
    ways = [(paper.WAYS[way], chunked) for way in paper.WAYS for chunked in (False, True)]
    assert asked == [(*way, 2, width, 2) for width in (32, 64) for way in ways]
    assert [(row["size"], row["way"], row["chunked"]) for row in part["rows"]] == [
        (size, way, chunked) for size in case.models for way in paper.WAYS for chunked in (False, True)
    ]
    assert {(row["model"]["limit"], row["model"]["length"]) for row in part["rows"]} == {(7 << 20, 128)}
    assert part["rows"][0]["batch"] == 4 and part["rows"][0]["tried"] == 5
    small, medium = part["goals"]
    assert small["what"] == "largest batch, small, reversible and chunked loss / standard"
    assert small["value"] == 18 / 4 and small["met"] == (18 / 4 >= paper.BATCH)
    assert math.isnan(medium["value"]) and not medium["met"]  # nothing of the standard way fits
    (_, header, cells), = paper.tables({"parts": {"batch": part}})  # fmt: skip
    assert header[-2:] == ("two steps", "confirmed") and len(cells) == 12
    assert cells[5] == ("small: 2 layers, width 32", "7 MB", "reversible", "chunked", "19", "18")


@pytest.mark.parametrize("wrong", [{"memory_limit": -1}, {"most": 0}])
def test_limits_that_hold_nothing_are_refused(wrong):
    (name, value), = wrong.items()  # fmt: skip
    with pytest.raises(ConfigError, match=f"{name} is {value}, expected at least {value + 1}"):
        paper.PaperCase(**wrong)


# ---- growth ----


@pytest.mark.parametrize("device, width", [("cpu", 64), ("cuda", 512)])
def test_what_grows_is_what_the_part_is_called(monkeypatch, device, width):
    """A part changes one size of a narrow trunk; on a device the trunk and the sizes are larger."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    calls = []
    monkeypatch.setattr(growth, "depth", lambda case, *rest: calls.append(("layers", case, *rest)))
    monkeypatch.setattr(growth, "against", lambda case, field, *rest: calls.append((field, case, *rest)))
    case = paper.PaperCase(device=device, dtype="bfloat16")
    for part in ("depth", "length", "batch-size"):
        paper.PARTS[part](case, 3, False)
    assert [call[0] for call in calls] == ["layers", "length", "batch"]
    for field, trunk, values, rounds, memory in calls:
        assert (trunk.width, trunk.device, trunk.dtype) == (width, device, "bfloat16")
        assert list(values) == sorted(values) and len(values) >= 4 and (rounds, memory) == (3, False)
        assert max(values) > getattr(trunk, field)
    assert calls[1][1].batch == 1 and max(calls[1][2]) == (8192 if device == "cpu" else 131072)


def test_rows_of_growth_carry_their_memory(monkeypatch):
    """Measured here, not in a process each: ours keeps less than plain, and grows less by a layer."""
    monkeypatch.setattr(
        growth,
        "in_children",
        lambda steps, case, names: {n: peaks.measured(*steps(case, n), case.device) for n in names},
    )
    case = TrunkCase(width=16, heads=2, batch=2, length=16)
    part = growth.against(case, "layers", (2, 4), 1, True)
    kept = {(row["way"], row["x"]): row["memory"]["kept"] for row in part["rows"]}
    grown = {way: kept[way, 4] - kept[way, 2] for way in growth.WAYS}
    assert grown["plain"] > grown["checkpoint"] > 2 * growth.CHECKSUM >= grown["reversible"] >= 0
    assert all(row["memory"]["peak"] >= row["memory"]["kept"] for row in part["rows"])


def test_a_layer_keeps_what_it_must():
    case = TrunkCase(layers=2, width=16, heads=2, batch=2, length=8)
    for row in growth.kept_by_a_layer(case, 2, 4):
        assert row["bytes"] == row["expected"], row
        made = 0 if "dropout" in row["what"] else row["bytes"] - growth.CHECKSUM
        assert row["tensors"] == made, row


def test_growth_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        paper, "_trunk", lambda case: TrunkCase(layers=2, width=16, heads=2, batch=1, length=8)
    )
    monkeypatch.setitem(
        paper.PARTS,
        "depth",
        lambda case, rounds, memory: growth.depth(paper._trunk(case), (2, 4, 8), rounds, memory),
    )
    path = tmp_path / "paper.json"
    assert (
        _cli.main(["bench", "paper", "--parts", "depth", "--no-memory", "--rounds", "2", "--json", str(path)])
        == 0
    )
    said, data = capsys.readouterr().out, json.loads(path.read_text())
    part = data["parts"]["depth"]
    assert [(row["way"], row["x"]) for row in part["rows"]] == [
        (way, x) for x in (2, 4, 8) for way in growth.WAYS
    ]
    assert all(g["what"] in said for g in part["goals"]) and part["goals"][0]["value"] == part["line"]["off"]
    assert (
        _cli.main(["bench", "paper", "--parts", "width"]) == 2
        and "parts are width" in capsys.readouterr().err
    )


def test_curves_show_the_rows(tmp_path):
    """Other numbers, another picture."""
    rows = [
        {"name": f"{w}, layers {x}", "way": w, "x": x, "p50": t * x, "memory": {"peak": 1000 * x}}
        for w, t in (("plain", 1.0), ("reversible", 1.3))
        for x in (8, 16)
    ]
    draw_curves(tmp_path / "a.png", "t", "s", rows)
    draw_curves(tmp_path / "b.png", "t", "s", [{**row, "memory": {"peak": 1000}} for row in rows])
    draw_curves(tmp_path / "c.png", "t", "s", [{**row, "p50": 1.0} for row in rows])
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 3


def test_the_ways_are_the_trunks_they_are_called():
    case = TrunkCase(layers=3, width=16, heads=2, batch=1, length=8)
    x, grads = torch.randn(1, 8, 16), {}
    for way in growth.WAYS:
        trunk = growth.trunk_of(case, way)
        trunk(x.clone().requires_grad_()).sum().backward()
        grads[way] = [p.grad for p in trunk.parameters()]
        assert (trunk.report is not None and trunk.report.exact) == (way == "reversible")
    assert all(torch.equal(a, b) for a, b in zip(grads["plain"], grads["checkpoint"]))
    assert not all(torch.equal(a, b) for a, b in zip(grads["plain"], grads["reversible"]))
