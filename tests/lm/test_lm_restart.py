"""Runs that are stopped by a signal and started again by the same command, and what may change meanwhile."""

import os
import signal

import pytest

from revstep import _cli, lm
from revstep.lm import _run


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_its_step_and_loses_nothing(config, tmp_path, number):
    before = signal.getsignal(number)

    def press(entry):
        if entry["step"] == 3:
            os.kill(os.getpid(), number)
            if number == signal.SIGTERM:  # schedulers and launchers repeat it
                os.kill(os.getpid(), number)

    stopped = lm.train(config(scheme="blend"), on_step=press)
    assert (
        stopped.interrupted
        and stopped.signal == number
        and stopped.step == lm.load_checkpoint(tmp_path / "run").step == 3
    )
    assert signal.getsignal(number) is before
    assert (
        stopped.losses + lm.resume(tmp_path / "run").losses == lm.train(config(scheme="blend", out="")).losses
    )


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_says_how_it_was_stopped_and_goes_on(config, tmp_path, capsys, monkeypatch, number, code):
    real = _run.learning_rate
    monkeypatch.setattr(
        _run, "learning_rate", lambda c, step: (step == 2 and os.kill(os.getpid(), number), real(c, step))[1]
    )
    small = (
        "--tokenizer bytes --layers 1 --width 16 --heads 2 --context 16 --batch 2 --steps 6 --eval-batches 1"
        " --no-progress --device cpu".split()
    )
    command = ["train", "--data", *config().data, *small, "--out", str(tmp_path / "run"), "--resume", "auto"]
    assert _cli.main(command) == code
    said = capsys.readouterr()
    assert (
        f"{number.name}: finishing this step" in said.err
        and "--resume" in said.err
        and "step 3 of 6" in said.out
    )
    monkeypatch.undo()
    assert _cli.main(command) == 0 and "step 6 of 6" in capsys.readouterr().out


def test_auto_starts_where_there_is_no_checkpoint_and_must_does_not(config, tmp_path):
    with pytest.raises(lm.CheckpointError, match="no checkpoint in"):
        lm.train(config(), resume=True)
    parts = [lm.train(config(), resume="auto", stop_at=stop).losses for stop in (3, 5, None)]
    assert [len(losses) for losses in parts] == [3, 2, 3] and [*parts[0], *parts[1], *parts[2]] == lm.train(
        config(out="")
    ).losses


@pytest.mark.parametrize("change", [{"lr": 5e-3}, {"state": "fixed32:18"}, {"clip": 0.5}])
def test_what_may_change_to_save_a_run_is_said_to_change_its_bits(config, tmp_path, change):
    whole = lm.train(config(scheme="blend", out=""))
    lm.train(config(scheme="blend"), stop_at=4)
    with pytest.warns(
        UserWarning,
        match=f"{next(iter(change))} changes from .* at step 4: the run goes on, but not bit for bit",
    ):
        rest = lm.resume(tmp_path / "run", change)
    assert rest.step == 8 and rest.exact and rest.losses != whole.losses[4:]
