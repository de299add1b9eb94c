"""Quality beside cost: rates are tuned and the batches are the same for all, runs go on where they stopped,
and the figures are what the runs say.
"""

import json
import statistics
import warnings

import pytest
import torch

from revstep import _cli
from revstep.errors import ConfigError, RevstepError
from revstep_lab.bench.results import points
from revstep_lab.cases import _quality, quality
from revstep_lab.cases._quality import Followed, QualityCase, batches_of, best_rate
from revstep_lab.cases.quality import run_quality

SIZES = {
    "variants": ("plain", "blend"),
    "layers": 1,
    "width": 16,
    "heads": 2,
    "context": 16,
    "batch": 4,
    "steps": 6,
    "tune_steps": 4,
    "rates": (1e-3, 4e-3, 1.6e-2),
    "seeds": (0, 1),
    "points": 2,
    "eval_batches": 1,
    "max_bytes": 200_000,
}
CASE = QualityCase(**SIZES)


def without_times(result: dict) -> list[dict]:
    return [
        {k: v for k, v in m.items() if k not in ("p20", "p50", "p80", "ratios")}
        for m in result["measurements"]
    ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("quality") / "runs.json"
    return run_quality(CASE, 1, resume=str(path)), json.loads(path.read_text())["runs"]


def test_rate_is_the_grids_best_on_the_tuning_seed(whole):
    result, runs = whole
    for m in result["measurements"]:
        tried = [r for r in runs if r["variant"] == m["name"] and r["seed"] == CASE.tune_seed]
        assert [r["rate"] for r in tried] == list(CASE.rates) and all(
            r["steps"] == CASE.tune_steps for r in tried
        )
        assert len({r["loss"] for r in tried}) == 3
        least = min(r["loss"] for r in tried)
        assert m["rate"] == next(r["rate"] for r in tried if r["loss"] == least)
        assert {r["rate"] for r in runs if r["variant"] == m["name"] and r["seed"] != CASE.tune_seed} == {
            m["rate"]
        }


def test_best_rate_passes_over_runs_that_ended_early():
    tried = [
        {"variant": "x", "rate": rate, "loss": loss, "error": "diverged"}
        for rate, loss in ((1.0, 3.0), (2.0, None), (3.0, 2.0), (4.0, float("nan")))
    ]
    assert best_rate(tried) == 3.0
    with pytest.raises(RevstepError, match="at no rate"):
        best_rate([tried[1], tried[3]])


def test_losses_and_paired_differences_are_those_of_the_runs(whole):
    result, runs = whole
    found = {
        name: [r["loss"] for seed in CASE.seeds for r in runs if (r["variant"], r["seed"]) == (name, seed)]
        for name in CASE.variants
    }
    for m in result["measurements"]:
        own, apart = found[m["name"]], [a - b for a, b in zip(found[m["name"]], found["plain"])]
        assert m["losses"] == own and len(set(own)) == 2
        assert m["loss"] == statistics.mean(own) and m["sd"] == statistics.stdev(own)
        # Two seeds: the standard error of a mean is half the distance of the two.
        assert m["difference"] == statistics.mean(apart) and m["standard_error"] == pytest.approx(
            abs(apart[0] - apart[1]) / 2, rel=1e-9, abs=1e-12
        )
        # 3 and 6 steps of 64 tokens.
        assert [curve[-1][1] for curve in m["curves"]] == own and [at[0] for at in m["curves"][0]] == [
            192,
            384,
        ]
        assert points(result, m, "seconds")[-1] == (pytest.approx(6 * m["p50"]), pytest.approx(m["loss"]))
    assert result["measurements"][1]["exact"] is True and result["measurements"][0]["exact"] is None


def test_all_variants_of_a_seed_see_the_same_batches(whole):
    runs = whole[1]
    orders = {
        (seed, steps): {r["order"] for r in runs if (r["seed"], r["steps"]) == (seed, steps)}
        for seed, steps in ((0, 6), (1, 6), (100, 4))
    }
    assert all(len(found) == 1 for found in orders.values()) and len(set.union(*orders.values())) == 3


def test_another_order_of_one_variant_is_refused(monkeypatch):
    """Mutant: the batches depend on the scheme."""

    def other(run, config):
        mine = batches_of(run, config)
        return (
            mine
            if config.scheme == "plain"
            else Followed(mine.tokens, mine.batch, mine.context, config.seed + 1)
        )

    monkeypatch.setattr(_quality, "batches_of", other)
    with pytest.raises(RevstepError, match="blend was trained on other batches than plain"):
        run_quality(CASE, 1)


def test_goes_on_where_it_stopped(tmp_path, whole, monkeypatch):
    """One variant alone, an interrupt in the other, then the rest: the runs and figures of the unbroken call,
    and none done twice.
    """
    path, done = tmp_path / "runs.json", []
    train_one = _quality.train_one

    def counted(case, corpus, name, *rest):
        if len(done) == 7:
            raise KeyboardInterrupt
        done.append(name)
        return train_one(case, corpus, name, *rest)

    monkeypatch.setattr(quality, "train_one", counted)
    alone = run_quality(CASE, 1, resume=str(path), only="blend")
    assert (
        [m["name"] for m in alone["measurements"]] == ["blend"]
        and alone["measurements"][0]["difference"] is None
        and done == ["blend"] * 5
    )
    with pytest.raises(KeyboardInterrupt):
        run_quality(CASE, 1, resume=str(path))
    assert len(json.loads(path.read_text())["runs"]) == 7
    monkeypatch.setattr(quality, "train_one", train_one)
    assert without_times(run_quality(CASE, 1, resume=str(path))) == without_times(whole[0])
    kept = json.loads(path.read_text())["runs"]
    assert sorted(kept, key=str) == sorted(whole[1], key=str)

    def never(*_):
        raise AssertionError("a finished run was done again")

    monkeypatch.setattr(quality, "train_one", never)
    assert without_times(run_quality(CASE, 1, resume=str(path))) == without_times(whole[0])
    with pytest.raises(ConfigError, match="only is 'bland'"):
        run_quality(CASE, 1, only="bland")
    with pytest.raises(ConfigError, match="width 16 there, 32 here"):
        run_quality(QualityCase(**{**SIZES, "width": 32}), 1, resume=str(path))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"variants": ("blend",)}, "expected plain"),
        ({"variants": ("plain", "bland")}, "'bland' is not known"),
        ({"rates": (1e-3, 2e-3)}, "at least three"),
        ({"seeds": (0, 100)}, "tuning seed not among"),
        ({"seeds": (0,)}, "two seeds"),
        ({"points": 7}, "no more points than steps"),
    ],
)
def test_cases_that_say_nothing_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        QualityCase(**{**SIZES, **changes})


def test_command_line_and_figures(tmp_path, capsys, monkeypatch):
    default = QualityCase.default
    monkeypatch.setattr(
        QualityCase, "default", classmethod(lambda cls, **changes: default(**{**SIZES, **changes}))
    )
    args = ["--variants", "plain", "midpoint:float32", "--rounds", "1", "--train-steps", "4"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # float states would warn in every step
        assert _cli.main(["bench", "quality", *args, "--json", str(tmp_path / "q.json")]) == 0
    said, data = capsys.readouterr().out, json.loads((tmp_path / "q.json").read_text())
    assert data["case"]["steps"] == 4 and [m["name"] for m in data["measurements"]] == [
        "plain",
        "midpoint:float32",
    ]
    assert all(f"{loss:.3f}" in said for m in data["measurements"] for loss in m["losses"])
    assert data["measurements"][1]["exact"] is False and "not exact" in said
    assert _cli.main(["bench", "--report", str(tmp_path)]) == 0
    for axis in ("tokens", "seconds"):
        assert (tmp_path / f"q-{axis}.png").stat().st_size > 10_000 and f"(q-{axis}.png)" in (
            tmp_path / "report.md"
        ).read_text()
    assert _cli.main(["bench", "quality", "--only", "plain"]) == 2
