"""Training under torchrun, as a user starts it; what the processes of a step tell each other; names."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from revstep import _cli, lm
from revstep.errors import ConfigError
from revstep.lm import _parallel
from revstep.lm._config import PARALLEL
from revstep.lm._guard import Measured, joined
from revstep.stack._report import Report

TINY = (
    "--tokenizer bytes --layers 2 --width 16 --heads 2 --context 16 --batch 4 --clip 0 --warmup 2 --lr 1e-2"
    " --min-lr 1e-3 --eval-every 0 --eval-batches 1 --save-every 2 --no-progress --device cpu"
).split()


def torchrun(*arguments):
    """A command that starts two processes of one thread each."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *map(str, arguments),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def finish(process):
    """-> exit code, what was printed. A run that hangs is killed with all it has started, and fails."""
    try:
        said, _ = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun ends what it has started
        raise
    return process.returncode, said


def log(out):
    return [json.loads(line) for line in (Path(out) / "log.jsonl").read_text().splitlines()]


def one_process(text, steps, **changes):
    """Losses of the run that two processes share, by one that adds up the halves of each batch."""
    config = lm.TrainConfig(
        data=(str(text),),
        tokenizer="bytes",
        layers=2,
        width=16,
        heads=2,
        context=16,
        batch=2,
        accumulate=2,
        clip=0.0,
        warmup=2,
        lr=1e-2,
        min_lr=1e-3,
        eval_every=0,
        eval_batches=1,
        device="cpu",
        out="",
        progress=False,
        steps=steps,
        **changes,
    )
    return lm.train(config).losses


def test_torchrun_trains_and_one_process_goes_on(text, tmp_path, capsys):
    out = tmp_path / "run"
    code, said = finish(
        torchrun(
            "-m",
            "revstep.lm",
            "--parallel",
            "ddp",
            "--data",
            text,
            *TINY,
            "--steps",
            6,
            "--stop-at",
            4,
            "--out",
            out,
        )
    )
    assert code == 0 and said.count("step 4 of 6") == said.count("saved in") == 1
    entries = log(out)
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4] and [
        entry["loss"] for entry in entries
    ] == one_process(text, 6)[:4]
    for entry in entries:
        assert entry["exact"] is True and len(entry["checksums"]) == len(set(entry["checksums"])) == 2
        assert all(len(digits) == 16 and int(digits, 16) >= 0 for digits in entry["checksums"])
        assert (
            entry["tokens_per_second"] == pytest.approx(4 * 16 / entry["seconds"])
            and entry["peak_memory"] > 0
        )
    capsys.readouterr()
    assert (
        _cli.main(["train", "--out", str(out), "--resume"]) == 2
        and "--parallel ddp" in capsys.readouterr().err
    )
    assert _cli.main(["train", "--out", str(out), "--resume", "--parallel", "none"]) == 0
    assert [len(entry["checksums"]) for entry in log(out)] == [2, 2, 2, 2, 1, 1] and lm.load_checkpoint(
        out
    ).step == 6
    assert _cli.main(["generate", str(out), "--prompt", "the", "--count", "3"]) == 0


CRASHING = """
import os, sys
from revstep._cli import main
from revstep.lm import _run

def step(self, real=_run.Run._step):
    if (self.step, os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == (3, "1", "0"):
        raise RuntimeError("pulled out")
    return real(self)

_run.Run._step = step
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_a_process_that_fails_ends_all_and_torchrun_starts_them_again(text, tmp_path):
    """In its fourth step one process fails, the other says so and ends; started again with --resume auto they
    end as if nothing had happened.
    """
    script, out = tmp_path / "crashing.py", tmp_path / "run"
    script.write_text(CRASHING)
    arguments = [
        "--parallel",
        "fsdp",
        "--scheme",
        "hamiltonian",
        "--data",
        text,
        *TINY,
        "--steps",
        6,
        "--resume",
        "auto",
        "--out",
        out,
    ]
    # torchrun ends the others as soon as it looks, and process 0 is to say something before that.
    options = "--max-restarts", "1", "--monitor-interval", "3"
    code, said = finish(torchrun(*options, script, *arguments))
    assert (
        "RuntimeError: pulled out" in said
        and "process 0 stopped: it has lost the others, one of which has ended and says why" in said
    )
    assert code == 0 and [entry["step"] for entry in log(out)] == [1, 2, 3, 4, 5, 6]
    assert [entry["loss"] for entry in log(out)] == one_process(text, 6, scheme="hamiltonian")


def test_sigterm_to_torchrun_leaves_a_checkpoint_of_the_last_step(text, tmp_path):
    out = tmp_path / "run"
    process = torchrun(
        "-m",
        "revstep",
        "train",
        "--parallel",
        "fsdp",
        "--data",
        text,
        *TINY,
        "--save-every",
        0,
        "--steps",
        100_000,
        "--out",
        out,
    )
    limit = time.monotonic() + 100
    while not (out / "log.jsonl").exists() or not log(out):
        assert process.poll() is None and time.monotonic() < limit, finish(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    steps = [entry["step"] for entry in log(out)]
    assert code != 0 and "go on with: torchrun ... -m revstep.lm --out" in said
    assert steps == list(range(1, len(steps) + 1)) and lm.load_checkpoint(out).step == len(steps)


# ---- what is refused ----


def test_one_process_alone_is_told_what_to_start(config, monkeypatch):
    with pytest.raises(
        ConfigError, match=r"torchrun --standalone --nproc-per-node N -m revstep.lm --parallel fsdp"
    ):
        lm.train(config(out="", parallel="fsdp"))
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        ConfigError, match="2 processes would each train the same run: add --parallel ddp or --parallel fsdp"
    ):
        lm.train(config(out=""))
    with pytest.raises(ConfigError, match="'cuda:1', one GPU for 2 processes; say cuda"):
        _parallel._own_device("cuda:1", 2)


def test_the_engines_are_those_the_config_knows():
    assert tuple(_parallel.ENGINES) == PARALLEL


# ---- what the processes tell each other ----


def report(**changes):
    values = dict(
        exact=True, layers=2, matched=2, max_error=0.0, headroom=5.0, bytes_saved=1, kept=0, checksum=7
    )
    return Report(**{**values, **changes})


def together(*processes):
    """The log's fields of processes that each saw these (loss, report)."""
    parts = []
    for seen in processes:
        measured = Measured(peak_memory=100 * len(parts))
        for loss, told in seen:
            measured.take(loss, told)
        parts.append(measured.pack())
    return joined(parts)


def test_the_log_has_the_mean_loss_the_worst_report_and_all_checksums():
    good, worse = report(), report(exact=False, max_error=0.5, headroom=2.0, checksum=2**64 - 1)
    assert together([(1.0, good)], [(2.0, worse)]) == {
        "loss": 1.5,
        "exact": False,
        "max_error": 0.5,
        "headroom": 2.0,
        "peak_memory": 100,
        "checksums": ["0000000000000007", "f" * 16],
    }
    assert together([(1.0, good), (2.0, good)])["checksums"] == [f"{31 * 7 + 7:016x}"]
    assert together([(0.1, good)])["loss"] == 0.1


@pytest.mark.parametrize(
    "processes, exact, error",
    [
        ([[(1.0, None)], [(1.0, None)]], None, 0.0),
        ([[(1.0, report())], [(1.0, None)]], None, 0.0),
        ([[(1.0, report(exact=False))], [(1.0, None)]], False, 0.0),
        ([[(1.0, report())], [(1.0, report(max_error=None))]], True, None),
        ([[(1.0, report(exact=False)), (1.0, report())]], False, 0.0),
    ],
    ids=["stored", "one unknown", "one wrong", "error unknown", "wrong, then right"],
)
def test_what_one_process_does_not_know_all_do_not(processes, exact, error):
    fields = together(*processes)
    assert fields["exact"] is exact and fields["max_error"] == error
    assert (fields["checksums"] is None) == all(told is None for seen in processes for _, told in seen)


def test_a_loss_that_is_not_a_number_on_one_is_not_one_on_all():
    assert math.isnan(together([(1.0, report())], [(math.nan, report())])["loss"])


def test_one_process_logs_its_checksum_and_stored_trunks_none(config):
    entries = []
    lm.train(config(out="", scheme="blend", steps=2), on_step=entries.append)
    assert [len(entry["checksums"]) for entry in entries] == [1, 1] and entries[0]["checksums"] != entries[1][
        "checksums"
    ]
    again = []
    lm.train(config(out="", scheme="blend", steps=2), on_step=again.append)
    assert [entry["checksums"] for entry in again] == [entry["checksums"] for entry in entries]
    lm.train(config(out="", scheme="plain", steps=1), on_step=entries.append)
    assert entries[-1]["checksums"] is None


def test_train_is_a_function_and_no_module():
    assert importlib.util.find_spec("revstep.lm.train") is None and callable(lm.train)
