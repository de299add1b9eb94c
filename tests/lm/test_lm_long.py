"""A run that is killed at any moment ends as one left alone, bit for bit, and its log has each step once. By
a check that notices what a restart could lose.
"""

import json
import random
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch
from killing import Killer, Plan

from revstep import lm
from revstep.lm import _checkpoint, _run, _session

KILLED = -signal.SIGKILL
#: What a clock or the machine decides: the only parts of a log that may differ.
CLOCKED = {"seconds", "tokens_per_second", "peak_memory"}


def outcome(out):
    """What must not depend on kills: weights, all training state, and the log."""
    saved = lm.load_checkpoint(out)
    lines = [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]
    return {
        "step": saved.step,
        "weights": saved.weights,
        "training": saved.training,
        "log": [{k: v for k, v in x.items() if k not in CLOCKED} for x in lines],
    }


def same(a, b):
    """Bit for bit, through lists and dictionaries."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, (list, tuple)) else a == b


class Trial:
    """One run, to be killed, beside the same run left alone."""

    def __init__(self, config, alone):
        self.config, self.out, self.alone = config, config.out, alone

    def lives(self, plans, mutant=None):
        """Exit codes of the lives that ``plans`` end, and of a last one left alone. ``mutant``: what is
        broken in all of them.
        """
        return [Killer().train(self.config, plan, mutant) for plan in [*plans, Plan("never")]]

    def differences(self):
        """Names of what the kills changed."""
        killed = outcome(self.out)
        return [name for name in killed if not same(killed[name], self.alone[name])]


@pytest.fixture(scope="module")
def memory():
    return {}


@pytest.fixture
def trial(config, tmp_path, memory):
    """``trial(steps)``: a run of so many steps with a checkpoint every second one. The run left alone is made
    once a module.
    """

    def make(steps):
        run = config(
            out=str(tmp_path / "run"), scheme="midpoint_blend:a=paper,seed=3", steps=steps, save_every=2
        )
        if steps not in memory:
            lm.train(config(out=str(tmp_path / "alone"), scheme=run.scheme, steps=steps, save_every=2))
            memory[steps] = outcome(tmp_path / "alone")
        return Trial(run, memory[steps])

    return make


def random_plans(seed, count=20):
    """A third of the kills at any call of a function, a third within file operations, a third from outside at
    any time of 0 to 40 ms after a step.
    """
    draw = random.Random(seed)
    kinds = {
        "call": lambda: draw.randint(1, 250_000),
        "file": lambda: draw.randint(1, 85),
        "clock": lambda: draw.uniform(0, 0.04),
    }
    return [Plan(by, kinds[by]()) for by in draw.sample([*kinds] * 7, count)]


def test_twenty_kills_at_random_moments_change_no_bit(trial):
    run = trial(110)
    assert run.lives(random_plans(1)) == [KILLED] * 20 + [0]
    assert run.differences() == []


def test_a_kill_at_each_file_operation_changes_no_bit(trial):
    """From opening the data and the checkpoint to removing the older checkpoint after the second save: no
    operation is a bad moment.
    """
    run = trial(110)
    assert run.lives(Plan("file", at) for at in range(1, 56)) == [KILLED] * 55 + [0]
    assert run.differences() == []


def nothing(*args, **kwargs):
    pass


def random_state_forgotten():
    _run.restore_random = nothing


def place_in_the_data_forgotten():
    lm.Batches.load_state_dict = nothing


def optimiser_forgotten():
    torch.optim.AdamW.load_state_dict = nothing


def log_not_cut():
    _session._cut = nothing


def late_lines():
    """A line is written when the next one comes, after the checkpoint of its step."""
    real, held = _session.StepLog.write, []

    def write(self, entry):
        held.append(entry)
        if len(held) > 1:
            real(self, held.pop(0))

    _session.StepLog.write = write


def not_atomic():
    """The checkpoint is written where it is to be, not beside it."""

    def save(folder, saved):
        older, target = _checkpoint.checkpoints(folder), folder / f"checkpoint-{saved.step:08d}"
        target.mkdir()
        _checkpoint._write(target, saved)
        for path in older:
            shutil.rmtree(path)
        return target

    _run.save_checkpoint = save


EVERYTHING = {"weights", "training", "log"}
MUTANTS = {
    None: set(),
    random_state_forgotten: EVERYTHING,
    place_in_the_data_forgotten: EVERYTHING,
    optimiser_forgotten: EVERYTHING,
    log_not_cut: {"log"},
    late_lines: {"log"},
}


@pytest.mark.parametrize(
    "mutant", MUTANTS, ids=lambda mutant: mutant.__name__ if mutant else "nothing broken"
)
def test_the_check_notices(trial, mutant):
    """Killed after the third step, which is in no checkpoint, and after the fourth, whose checkpoint has just
    been written.
    """
    killed = trial(8)
    assert killed.lives([Plan("step", 3), Plan("step", 2)], mutant) == [KILLED, KILLED, 0]
    assert set(killed.differences()) == MUTANTS[mutant]


def test_the_check_notices_a_checkpoint_written_in_place(trial):
    killed = trial(8)
    # It works, where nothing happens meanwhile.
    assert killed.lives([Plan("step", 3)], not_atomic) == [KILLED, 0] and killed.differences() == []
    shutil.rmtree(killed.out)
    codes = killed.lives([Plan("step", 3), *(Plan("file", at) for at in range(12, 22))], not_atomic)
    assert codes[-2:] == [1, 1]  # a torn checkpoint has the newest name: no life after that can start


def save(folder, at, size):
    """Save step 3, to be killed at the ``at``-th operation on files (0: not)."""
    Plan("file", at).arm(str(folder))
    lm.save_checkpoint(folder, lm.Checkpoint(3, {}, {"w": torch.full((size,), 3.0)}, {}, {}))


def saved_again(folder):
    """Step 3, saved with 5 weights, is saved with 6, and killed at each file operation in turn -> exit codes,
    and how many weights were there after each.
    """
    codes, sizes = [], []
    while 0 not in codes:
        save(folder, 0, 5)
        codes.append(Killer().call(save, folder, len(codes) + 1, 6))
        sizes.append(len(lm.load_checkpoint(folder).weights["w"]))
    return codes, sizes


def test_a_kill_while_the_same_step_is_saved_again_leaves_one_of_the_two(tmp_path):
    codes, sizes = saved_again(tmp_path)
    assert len(codes) > 10 and set(codes[:-1]) == {KILLED} and sizes == sorted(sizes) and set(sizes) == {5, 6}
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-00000003"]


def test_the_check_notices_a_checkpoint_under_no_name_that_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint, "_NAME", re.compile(r"checkpoint-(\d{8,})"))
    with pytest.raises(lm.CheckpointError, match="no checkpoint in"):
        saved_again(tmp_path)
