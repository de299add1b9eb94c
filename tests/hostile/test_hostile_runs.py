"""Runs of ``revstep.lm`` on what nobody would give them: refused in a sentence, with nothing written."""

import json
import os
import warnings

import pytest

from revstep import lm
from revstep._cli import main
from revstep.errors import ConfigError
from revstep.lm import _sizes
from revstep.lm._tokenizer import cut_words

SMALL = (
    "train --tokenizer bytes --layers 1 --width 8 --heads 1 --context 8 --batch 2 --steps 2 --eval-batches 1"
    " --eval-every 0 --save-every 0 --device cpu --no-progress"
).split()


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("the state can be rebuilt, and the step undone\n" * 40)
    return str(path)


@pytest.fixture
def trained(tmp_path, text):
    assert main([*SMALL, "--data", text, "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


BEYOND = {
    "seed": (["--seed", str(2**64)], "is out of range"),
    "batch": (["--batch", str(10**12)], "a batch of 1000000000000 rows of 8 tokens takes at least"),
    "width": (["--width", str(2**40)], r"the model has 1.45e+25 parameters, which take at least"),
    "layers": (["--layers", str(10**9)], "parameters, which take at least"),
    "context": (["--context", str(10**21)], "is out of range"),
    "validation": (["--eval-batches", str(10**13)], "a validation takes at least"),
    "ids": (["--tokenizer", "bpe:1048577"], "above 256 and at most 1048576"),
    "digits": (["--steps", "9" * 5000], "is not a whole number"),
    "rate": (["--lr", "1e400"], "is not a finite number"),
    "budget": (["--keep", "auto", "--memory-budget", "1e400"], "neither a fraction such as 0.5 nor a size"),
    "pipe": (["--data", "/dev/zero"], "is a pipe or a device"),
}


@pytest.mark.parametrize("options, message", BEYOND.values(), ids=BEYOND)
def test_absurd_numbers_are_refused_and_nothing_is_written(tmp_path, text, capsys, options, message):
    out = tmp_path / "deep" / "run"
    assert main([*SMALL, "--data", text, "--out", str(out), *options]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (tmp_path / "deep").exists()


def test_what_is_refused_at_the_memory_of_this_machine_is_allowed_with_more(monkeypatch):
    config = lm.TrainConfig(width=1024, layers=4, heads=4, device="cpu", data=("x",))
    _sizes.refuse_beyond_memory(config, True)
    needed = 16 * _sizes.parameters(config.shape(256))
    monkeypatch.setattr(_sizes, "memory_here", lambda: needed)
    with pytest.raises(ConfigError, match="and this machine has"):
        _sizes.refuse_beyond_memory(config, True)
    _sizes.refuse_beyond_memory(config, False)  # trained elsewhere: the weights pass through
    monkeypatch.setattr(_sizes, "memory_here", lambda: None)
    _sizes.refuse_beyond_memory(config, True)


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"model": "llama", "kv_heads": 1, "heads": 4}])
def test_the_count_of_parameters_is_that_of_the_model(changes):
    config = lm.TrainConfig(width=32, layers=3, context=16, data=("x",), **changes)
    shape = config.shape(257)
    model = lm.make_model(shape, "plain")
    matrices = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    assert _sizes.parameters(shape) == matrices


def test_a_second_run_into_one_folder_says_who_holds_it(tmp_path, text, monkeypatch, capsys):
    out = str(tmp_path / "run")
    seen = []

    def second(entry):
        seen.append(main([*SMALL, "--data", text, "--out", out]))

    lm.train(lm.TrainConfig(
        data=(text,), tokenizer="bytes", layers=1, width=8, heads=1, context=8, batch=2, steps=1,
        eval_batches=1,
        device="cpu", progress=False, out=out,
    ), on_step=second)  # fmt: skip
    assert seen == [2] and f"is being written by process {os.getpid()}" in capsys.readouterr().err


def test_a_bit_of_a_run_that_flips_never_makes_another_run(trained, capsys):
    """Of manifest.json and tokens.bin: the same run or a sentence."""
    manifest = next(trained.glob("checkpoint-*")) / "manifest.json"
    config = lm.load_checkpoint(trained, training=False).config
    for path in (manifest, trained / "data" / "tokens.bin"):
        whole = path.read_bytes()
        refused = 0
        for k in range(60):
            at = len(whole) * k // 60
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << k % 8]) + whole[at + 1 :])
            try:
                found = lm.load_checkpoint(trained, training=False).config
                lm.Corpus.open(trained / "data")
            except (lm.CheckpointError, ConfigError) as error:
                assert len(str(error).splitlines()) == 1
                refused += 1
            else:
                assert found == config
        path.write_bytes(whole)
        assert refused > 30
    lm.load_checkpoint(trained)


@pytest.mark.parametrize(
    "change", [{"format": 3}, {"format": None}, {"step": -1}, {"config": []}, {"files": {}}]
)
def test_a_manifest_that_lies_is_refused(trained, change):
    manifest = next(trained.glob("checkpoint-*")) / "manifest.json"
    stored = (
        json.loads(manifest.read_text()) | {"format": 1} | change
    )  # format 1 has no checksum to begin with
    manifest.write_text(json.dumps(stored))
    with warnings.catch_warnings(), pytest.raises(lm.CheckpointError, match="cannot read the checkpoint"):
        warnings.simplefilter("ignore")
        lm.load_checkpoint(trained)


def test_a_tokenizer_of_another_run_is_refused(trained, capsys):
    path = trained / "data" / "tokenizer.json"
    path.write_text("{}")
    assert main(["generate", str(trained), "--count", "1"]) == 2
    assert "is not a tokenizer" in capsys.readouterr().err
    path.write_text(lm.BPETokenizer.train(["a state and a step"], 300).dumps())
    assert main(["generate", str(trained), "--count", "1"]) == 2
    assert "is not the one that made tokens.bin" in capsys.readouterr().err


def test_generate_refuses_what_nothing_can_be_drawn_by(trained, capsys):
    for option in (
        "--temperature nan",
        "--top-p nan",
        "--temperature 1e-320",
        f"--seed {2**64}",
        "--device meta",
    ):
        assert main(["generate", str(trained), "--count", "1", *option.split()]) == 2, option
        assert capsys.readouterr().err.count("\n") <= 40


# ---- byte-pair training on one unbroken word ----


@pytest.mark.parametrize(
    "word", ["a" * 3_000, "\u0301" * 2_000, "1\u00b2" * 1_500, " " * 3_000, "ab_" * 1000]
)
def test_a_text_without_breaks_is_cut_for_training(word):
    pieces = list(cut_words(word))
    assert "".join(pieces) == word and max(map(len, pieces)) <= 1000
    made = lm.BPETokenizer.train([word], 300)
    assert made.decode(made.encode(word).tolist()) == word


@pytest.mark.parametrize(
    "text", ["", "a", "the state is an integer and the step can be undone. " * 200, "a" * 499, "x " * 999]
)
def test_an_ordinary_text_is_not_cut(text):
    """The tokenizer that is trained on it is the one it always was."""
    assert list(cut_words(text)) == [text]


# ---- what is printed ----


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_cannot_show_a_character_shows_its_escape(trained, tmp_path, monkeypatch, encoding):
    with open(tmp_path / "said", "w", encoding=encoding) as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        assert main(["generate", str(trained), "--prompt", "\u2192x", "--count", "1"]) == 0
    assert (tmp_path / "said").read_bytes().startswith(b"\\u2192x")


def test_a_full_disk_behind_stdout_is_a_sentence(monkeypatch, capsys):
    with open("/dev/full", "w") as stdout:
        monkeypatch.setattr("sys.stdout", stdout)
        monkeypatch.setattr(
            "revstep._cli._drop_stdout", lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())
        )
        assert main(["plan", "--models"]) == 2
    assert "what was printed could not be written: No space left on device" in capsys.readouterr().err
