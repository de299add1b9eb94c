"""Runs of the language model by two processes, stopped and resumed: each process goes on with its own random
numbers, and a checkpoint belongs to no engine.
"""

import json
import math
from pathlib import Path

import pytest
import torch
from lm_runs import KINDS, bits, joined_bound, steps_of, tiny_runs, train

from revstep import lm
from revstep.errors import ConfigError


@pytest.fixture
def config(tmp_path):
    return tiny_runs(tmp_path)


def after_resuming(ranks, config, kind, mutants=()):
    """Names of what differs between a run of two processes and one stopped at step 3 and resumed."""
    whole = ranks(train, config("whole", parallel=kind, scheme="bdia", dropout=0.1).to_dict())
    parts = config("parts", parallel=kind, scheme="bdia", dropout=0.1).to_dict()
    first = ranks(train, parts, False, 3)
    second = ranks(train, parts, True, None, mutants)
    saved = [lm.load_checkpoint(config(name).out) for name in ("whole", "parts")]
    logs = [
        [json.loads(line) for line in (Path(config(name).out) / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    clean = [steps_of(log, "val_loss") for log in logs]  # validated where it stopped, too
    assert [entry["step"] for entry in logs[0]] == [1, 2, 3, 4, 5, 6] and first[1]["step"] == 3
    found = {
        "log": clean[0] != clean[1],
        "digests": [r["digest"] for r in whole] != [r["digest"] for r in second],
        "weights": bits(saved[0].weights) != bits(saved[1].weights),
        "training": bits(saved[0].training) != bits(saved[1].training),
    }
    return [name for name, different in found.items() if different]


@pytest.mark.parametrize("kind", KINDS)
def test_resumed_equals_uninterrupted(ranks, config, kind):
    assert after_resuming(ranks, config, kind) == []


@pytest.mark.parametrize(
    "kind, mutant",
    [("ddp", "random_states_forgotten"), ("fsdp", "optimizer_forgotten"), ("ddp", "weights_of_each_alone")],
)
def test_the_resume_check_notices(ranks, config, kind, mutant):
    assert "weights" in after_resuming(ranks, config, kind, (mutant,))


def test_processes_draw_from_generators_of_their_own(ranks, config):
    """On the same rows their states differ by the dropout masks alone, in every step; with one generator they
    would not.
    """
    run = config("", parallel="ddp", dropout=0.1).to_dict()
    for mutants, distinct in ((("same_rows",), 2), (("same_rows", "one_generator"), 1)):
        entries = ranks(train, run, False, None, mutants)[0]["entries"]
        assert [len(set(entry["checksums"])) for entry in entries] == [distinct] * 6


def test_a_checkpoint_belongs_to_no_engine(ranks, config):
    """Begun with one engine and ended with another; with equal numbers of processes the bits stay, else the
    sum's order changes.
    """
    whole = ranks(train, config("whole", parallel="ddp").to_dict())[0]
    ranks(train, config("run", parallel="fsdp").to_dict(), False, 3)
    middle = lm.load_checkpoint(config("run").out)
    assert {name: type(w) for name, w in middle.weights.items()} == {
        name: torch.Tensor for name in lm.load_checkpoint(config("whole").out).weights
    }
    second = ranks(train, config("run", parallel="ddp").to_dict(), True, 4)[0]
    assert second["entries"][0]["loss"] == whole["entries"][3]["loss"]
    with pytest.raises(ConfigError, match=r"started alone: use torchrun .* or parallel 'none'"):
        lm.resume(config("run").out)
    with pytest.warns(UserWarning, match="parallel ddp of 2 -> none"):
        alone = lm.resume(config("run").out, {"parallel": "none"}, stop_at=5)
    # two steps on, what has moved is a rounding of the second one's gradient: the next loss still is that of
    # the same weights, in another order of rows
    assert alone.losses[0] == pytest.approx(whole["entries"][4]["loss"], abs=joined_bound(config("")))
    last = ranks(train, config("run", parallel="fsdp").to_dict(), True)[0]
    assert last["step"] == 6 and last["exact"] and math.isfinite(last["entries"][-1]["loss"])
    assert lm.generate_text(config("run").out, "the", count=3).startswith("the")
