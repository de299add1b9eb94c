"""A full disk: the run stops with a sentence, the checkpoint before is intact, nothing half written stays,
and a resume with space goes on bit for bit.

The kernel refuses the writes: a limit on the size of files cuts them off half way, /dev/full answers as a
full disk does.
"""

import contextlib
import errno
import json
import os
import resource
from pathlib import Path

import pytest
import torch

from revstep import lm
from revstep.lm import _checkpoint, _session


@contextlib.contextmanager
def files_of_at_most(size):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def log_of(folder):
    return Path(folder) / "log.jsonl"


def no_room_for_the_weights(stack, monkeypatch, out):
    stack.enter_context(files_of_at_most(20_000))


def no_room_for_half_a_line(stack, monkeypatch, out):
    stack.enter_context(files_of_at_most(log_of(out).stat().st_size + 30))


def log_on_a_full_disk(stack, monkeypatch, out):
    """The log's file becomes /dev/full: ENOSPC from the kernel."""
    full = os.open("/dev/full", os.O_WRONLY)
    handle = next(
        h
        for h in os.listdir("/proc/self/fd")
        if os.path.realpath(f"/proc/self/fd/{h}") == str(log_of(out).resolve())
    )
    os.dup2(full, int(handle))
    os.close(full)


def checkpoint_on_a_full_disk(stack, monkeypatch, out):
    """What is opened in a .part folder is /dev/full: ENOSPC from the kernel, at the first flush."""
    real = Path.open

    def opened(self, mode="r", *a, **k):
        return real(Path("/dev/full") if ".part" in str(self) else self, mode, *a, **k)

    stack.enter_context(pytest.MonkeyPatch.context()).setattr(Path, "open", opened)


def refuses(name, owner):
    def full(stack, monkeypatch, out):
        def refuse(*args, **kwargs):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        stack.enter_context(pytest.MonkeyPatch.context()).setattr(owner, name, refuse)

    full.__name__ = f"no_room_for_{name}"
    return full


FULL = {
    no_room_for_the_weights: lm.CheckpointError,
    checkpoint_on_a_full_disk: lm.CheckpointError,
    refuses("mkdir", Path): lm.CheckpointError,
    refuses("flush_folder", _checkpoint): lm.CheckpointError,
    refuses("fsync", os): (lm.CheckpointError, lm.LogError),
    no_room_for_half_a_line: lm.LogError,
    log_on_a_full_disk: lm.LogError,
}
STEPS, AT = 8, 5


@pytest.fixture
def filled(config, tmp_path, monkeypatch):
    """``filled(full)``: a run with a checkpoint every second step, whose disk is full from step 5 on -> the
    error that ended it.
    """

    def fill(full):
        def on_step(entry):
            if entry["step"] == AT:
                full(stack, monkeypatch, tmp_path / "run")

        with contextlib.ExitStack() as stack, pytest.raises((lm.CheckpointError, lm.LogError)) as stopped:
            lm.train(config(scheme="blend", steps=STEPS, save_every=2), on_step=on_step)
        return stopped.value

    return fill


def troubles(out, error, expected):
    """What a full disk should not have done."""
    lines = log_of(out).read_bytes().splitlines(keepends=True)
    steps = [json.loads(line)["step"] for line in lines if line.endswith(b"\n")]
    return [
        name
        for name, wrong in {
            "error": not isinstance(error, expected),
            "advice": "free some space" not in str(error),
            "checkpoint not named": "The last checkpoint, checkpoint-00000004, is intact" not in str(error),
            "half files": (
                sorted(path.name for path in out.iterdir()) != ["checkpoint-00000004", "data", "log.jsonl"]
            ),
            "half line": len(steps) != len(lines),
            "log": steps[:AT] != list(range(1, AT + 1)) or len(steps) > AT + 1,
        }.items()
        if wrong
    ]


@pytest.mark.parametrize("full", FULL, ids=lambda full: full.__name__)
def test_a_full_disk_stops_the_run_and_spoils_nothing(filled, config, tmp_path, full):
    out = tmp_path / "run"
    assert troubles(out, filled(full), FULL[full]) == []
    whole = lm.train(config(scheme="blend", steps=STEPS, out=""))
    rest = lm.resume(out)  # there is space again
    assert rest.first_step == 4 and rest.losses == whole.losses[4:]
    assert all(
        torch.equal(a, b) for a, b in zip(rest.model.parameters(), whole.model.parameters(), strict=True)
    )
    assert [json.loads(line)["step"] for line in log_of(out).read_text().splitlines()] == list(
        range(1, STEPS + 1)
    )


def line_not_taken_back(self, entry):
    line = (json.dumps(entry) + "\n").encode()
    with self._explained():
        while line:
            line = line[self._file.write(line) :]


MUTANTS = {
    "half files": (_checkpoint.shutil, "rmtree", lambda *args, **kwargs: None, no_room_for_the_weights),
    "half line": (_session.StepLog, "write", line_not_taken_back, no_room_for_half_a_line),
    "checkpoint not named": (_session, "what_is_left", lambda folder: "", log_on_a_full_disk),
    "error": (_session.StepLog, "_explained", lambda self: contextlib.nullcontext(), log_on_a_full_disk),
}


@pytest.mark.parametrize("trouble", MUTANTS)
def test_the_check_notices(filled, config, tmp_path, monkeypatch, trouble):
    owner, name, mutant, full = MUTANTS[trouble]
    monkeypatch.setattr(owner, name, mutant)
    if trouble == "error":
        with pytest.raises(OSError, match="No space left"):
            filled(full)
    else:
        assert trouble in troubles(tmp_path / "run", filled(full), (lm.CheckpointError, lm.LogError))


def test_a_log_is_cut_where_there_is_no_space_to_write_it_again(config, tmp_path):
    lm.train(config(steps=STEPS), stop_at=4)
    with log_of(tmp_path / "run").open("a") as log:
        log.write('{"step": 5, "loss": 1.0}\n{"step": 6, "lo')
    with files_of_at_most(10), pytest.raises(lm.LogError, match="checkpoint-00000004, is intact"):
        lm.resume(tmp_path / "run")
    assert [json.loads(line)["step"] for line in log_of(tmp_path / "run").read_text().splitlines()] == [
        1,
        2,
        3,
        4,
    ]
