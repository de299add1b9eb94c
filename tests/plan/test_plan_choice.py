"""The frontier of a plan: the point that is chosen for a budget is the fastest that fits, by the plan's own
estimates, and where none fits the sentence has the numbers.
"""

import itertools
import re

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
from plan_step import configs

from revstep import ConfigError, _cli
from revstep._values import size
from revstep.plan import Point, _choice, plan

#: Nothing fits, so that no largest batch is looked for; budgets are given to ``choose``.
NONE = {"memory": 1, "headroom": 0.0}
LORA = {"sequence": 512, "trainable": "lora:r=2,targets=all-linear", "dtype": "float32", "chunk": 64}


@pytest.fixture(scope="module")
def llama():
    return configs(hidden=64, layers=6)["llama"]


@pytest.fixture(scope="module")
def made(llama):
    return plan(llama, **LORA, **NONE)


def whole(made, mode="reversible", keep=0, tile=None, fused=False):
    (point,) = [p for p in made.points if (p.mode, p.keep, p.tile, p.fused_step) == (mode, keep, tile, fused)]
    return point


def budgets(made):
    """Between the peaks of all points, at them, and above them all."""
    peaks = sorted({p.peak for p in made.points})
    return [*peaks, *((a + b) / 2 for a, b in itertools.pairwise(peaks)), 2 * peaks[-1]]


def check_fastest(made):
    """By hand: no allowed point that fits is faster, and of equally fast ones none is simpler."""
    least = min(p.peak for p in made.points if not p.fused_step)
    for budget in budgets(made):
        if budget < least:
            continue
        got = made.choose(int(budget) + 1)
        fits = [p for p in made.points if p.peak <= int(budget) + 1 and not p.fused_step]
        assert got in fits
        assert got.step_time <= min(p.step_time for p in fits) + 1e-9
        as_fast = [p for p in fits if p.step_time == got.step_time]
        assert got.tile is None or all(p.tile for p in as_fast)


def test_the_fastest_of_those_that_fit(made):
    check_fastest(made)


@pytest.mark.parametrize("rank", ["peak", "slowest", "tiles first"])
def test_another_choice_is_noticed(made, monkeypatch, rank):
    """Broken on purpose: the smallest that fits, the slowest, and tiles before whole ones."""
    keys = {
        "peak": lambda p: p.peak,
        "slowest": lambda p: -p.step_time,
        "tiles first": lambda p: (round(p.step_time, 9), p.fused_step, p.tile is None),
    }
    # With keep = all layers tiles have nothing to do, and both points are as fast.
    monkeypatch.setattr(_choice, "_rank", keys[rank])
    with pytest.raises(AssertionError):
        check_fastest(made)


def test_a_budget_that_is_ignored_is_noticed(made, monkeypatch):
    honest = _choice.fastest
    monkeypatch.setattr("revstep.plan._planner.fastest", lambda points, budget: honest(points, 1e18))
    with pytest.raises(AssertionError):
        check_fastest(made)


def test_points_agree_with_the_rows(made):
    """Kept layers, peaks and times are those of the rows."""
    for mode in ("plain", "checkpointed", "reversible"):
        row, point = made.row(mode, True), whole(made, mode)
        assert (row.peak, row.moment, row.step_time) == (point.peak, point.moment, point.step_time)
    row, plain = made.row("reversible", True), whole(made, "plain")
    between = int((whole(made, keep=3).peak + whole(made, keep=4).peak) / 2)
    assert made.choose(between).keep == 3 and whole(made, keep=3).step_time < row.step_time
    assert made.choose("1GB") == plain


def test_tiles_are_chosen_where_no_layer_kept_does_not_fit(made):
    tiled, untiled = whole(made, tile=256), whole(made)
    assert tiled.peak < untiled.peak
    budget = int((tiled.peak + untiled.peak) / 2)
    assert made.choose(budget).tile is not None
    assert made.choose(int(untiled.peak) + 1).tile is None
    assert "tiles of 256" in str(made.choose(int(tiled.peak) + 1))
    assert tiled.step_time == pytest.approx(untiled.step_time + _choice.BY_TILES)


def test_tiles_are_not_chosen_against_the_given_one(llama):
    given = plan(llama, **LORA, **NONE, tile=128)
    assert {p.tile for p in given.points if p.mode == "reversible"} == {128}
    assert {p.tile for p in plan(llama, **LORA).points} == {None}  # nothing to fit


def test_nothing_fits(made):
    least = min((p for p in made.points if not p.fused_step), key=lambda p: p.peak)
    with pytest.raises(ConfigError) as error:
        made.choose(1000)
    said = str(error.value)
    assert f"needs {size(least.peak)} at least, with {least}" in said and "budget 1 KB" in said
    assert f"short of {size(least.peak - 1000)}" in said
    with pytest.raises(ConfigError, match="the plan has no memory"):
        plan(configs(hidden=64)["llama"], sequence=32).choose()


def test_the_step_inside_backward_is_asked_for(llama):
    """It changes the training loop: recommended, and chosen where the plan was asked for it."""
    full = plan(llama, sequence=64, dtype="float32", **NONE)
    least = {fused: min(p.peak for p in full.points if p.fused_step == fused) for fused in (False, True)}
    assert least[True] < least[False]
    between = int(sum(least.values()) / 2)
    with pytest.raises(ConfigError, match="at least"):
        full.choose(between)
    assert full.choose(between, fused_step=True).fused_step
    asked = plan(llama, sequence=64, dtype="float32", memory=between, headroom=0.0, fused_step=True)
    assert asked.choose().fused_step and all(p.fused_step for p in asked.points)
    told = plan(llama, sequence=64, dtype="float32", memory=between, headroom=0.0)
    assert told.fastest().startswith("Nothing fits: a step of batch 1 needs")
    assert "with --fused-step reversible" in told.fastest() or "with --fused-step checkp" in told.fastest()
    many = plan(llama, sequence=64, dtype="float32", world=2)
    assert not any(p.fused_step for p in many.points)


def test_options_are_those_of_a_stack(made):
    options = whole(made, keep=2, tile=256).options("blend:c=0.0625", checks="all")
    assert (options.keep, options.tile, options.checks) == (2, 256, "all")
    with pytest.raises(ConfigError, match="no stack runs it"):
        whole(made, "plain").options("midpoint")


def test_the_command_says_it(llama, made, tmp_path, capsys):
    llama.save_pretrained(tmp_path)
    words = ["plan", str(tmp_path), "--seq", "512", "--dtype", "float32", "--lora", "2", "--lora-all-linear"]
    plain, none = (int(whole(made, mode).peak) + 1 for mode in ("plain", "reversible"))
    for memory, expected in ((plain, r"plain, .* \(--scheme plain\)"), (none, r"\(--keep \d+")):
        assert _cli.main([*words, "--chunk", "64", "--memory", str(memory), "--headroom", "0"]) == 0
        assert re.search(rf"^Fastest that fits .* at batch 1: .*{expected}", capsys.readouterr().out, re.M)
    tiled = int((whole(made, tile=256).peak + whole(made).peak) / 2)  # no row of the table fits, a point does
    assert _cli.main([*words, "--chunk", "64", "--memory", str(tiled), "--headroom", "0"]) == 0
    said = capsys.readouterr()
    assert re.search(r"^Fastest .*--tile 256\)$", said.out, re.M) and "does not fit" not in said.err
    assert _cli.main([*words, "--chunk", "64", "--memory", "1kB", "--headroom", "0"]) == 2
    said = capsys.readouterr()
    assert "Nothing fits: a step of batch 1 needs" in said.out and "does not fit in 1 KB" in said.err
    assert _cli.main(words) == 0
    assert "Fastest" not in capsys.readouterr().out


def test_points_are_plain_values(made):
    assert isinstance(made.points[0], Point)
    assert {"keep", "tile", "peak", "step_time"} <= made.to_dict()["points"][0].keys()
