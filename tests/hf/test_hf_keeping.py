"""What a fine-tuning keeps, where it cannot: a checkpoint is whole or not there, and each error says from
which one to go on.
"""

import errno
import json

import pytest

from revstep import ConfigError
from revstep.hf import _keeping


class State:
    global_step = 4


class Trainer:
    """Writes a file of a checkpoint, and ends as it is told."""

    state = State()

    def __init__(self, out, error=None):
        self.out, self.error = out, error

    def _save_checkpoint(self, model, trial=None):
        folder = self.out / "checkpoint-4"
        folder.mkdir()
        (folder / "weights").write_bytes(b"half")
        if self.error is not None:
            raise self.error
        return "saved"


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_a_checkpoint_that_is_finished_stays(tmp_path):
    trainer = Trainer(tmp_path)
    with _keeping.whole_checkpoints(trainer, tmp_path):
        assert trainer._save_checkpoint(None, trial=None) == "saved"
    assert (tmp_path / "checkpoint-4" / "weights").exists()
    assert "_save_checkpoint" not in vars(trainer)  # the Trainer's own again


@pytest.mark.parametrize(
    "error", [FULL, RuntimeError("[enforce fail at inline_container.cc] unexpected pos")]
)
@pytest.mark.parametrize("earlier", [(), (1, 3), (3, 12)])
def test_one_that_is_not_is_taken_away(tmp_path, error, earlier):
    for step in earlier:
        (tmp_path / f"checkpoint-{step}").mkdir()
    (tmp_path / "checkpoint-x").mkdir()
    trainer = Trainer(tmp_path, error)
    with (
        pytest.raises(
            _keeping.WriteError, match=r"^could not write .*checkpoint-4: .*free some space"
        ) as caught,
        _keeping.whole_checkpoints(trainer, tmp_path),
    ):
        trainer._save_checkpoint(None)
    assert not (tmp_path / "checkpoint-4").exists()
    left = f"checkpoint-{max(earlier)} is intact: go on from it with --resume" if earlier else "no earlier"
    assert left in str(caught.value) and "_save_checkpoint" not in vars(trainer)


def test_no_memory_is_not_a_full_disk(tmp_path):
    trainer = Trainer(tmp_path, MemoryError())
    with pytest.raises(MemoryError), _keeping.whole_checkpoints(trainer, tmp_path):
        trainer._save_checkpoint(None)


@pytest.mark.parametrize(
    "checkpoint, steps, error, named",
    [
        ("run/checkpoint-2", [], KeyError("exp_avg"), True),
        ("run/checkpoint-2", [1], KeyError("exp_avg"), False),  # it had gone on
        (None, [], KeyError("exp_avg"), False),  # it began
        ("run/checkpoint-2", [], ConfigError("of ours"), False),
        ("run/checkpoint-2", [], MemoryError(), False),
    ],
)
def test_a_damaged_checkpoint_is_named(checkpoint, steps, error, named):
    with pytest.raises(Exception) as caught, _keeping.named_where_it_begins(checkpoint, steps):
        raise error
    if named:
        assert type(caught.value) is ConfigError and caught.value.__cause__ is error
        assert "cannot go on from run/checkpoint-2" in str(caught.value) and "exp_avg" in str(caught.value)
    else:
        assert caught.value is error


LINES = [
    '{"step": 1, "loss": 2.0}\n',
    '{"step": 2}\n',
    '{"step": 3}\n',
    '{"step": "x"}\n',
    '{"loss": 1}\n',
    '{"st',
]


def test_the_log_goes_on_after_the_step(tmp_path):
    log = _keeping.Log(tmp_path / "out")
    log.begin(0, False)
    log.add({"step": 1})
    assert log.path.read_text(encoding="utf-8") == '{"step": 1}\n'
    log.path.write_text("".join(LINES), encoding="utf-8")  # the last ones as a crash leaves them
    log.begin(2, True)
    log.add({"step": 3, "loss": 1.5})
    kept = [json.loads(line) for line in log.path.read_text(encoding="utf-8").splitlines()]
    assert kept == [{"step": 1, "loss": 2.0}, {"step": 2}, {"step": 3, "loss": 1.5}]
    log.begin(0, False)  # another run
    assert log.path.read_bytes() == b""


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "checkpoint-3").mkdir()
    log = _keeping.Log(tmp_path)
    log.path.symlink_to("/dev/full")
    with pytest.raises(
        _keeping.WriteError, match=r"could not write .*log.jsonl: No space left .*checkpoint-3 is"
    ):
        log.add({"step": 1})
    blocked = _keeping.Log(tmp_path / "file")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(_keeping.WriteError, match=r"could not write .*there is no earlier checkpoint"):
        blocked.begin(0, False)
