"""The command line as a user meets it: runs that work, and sentences where they do not."""

import argparse
import json
import subprocess
import sys

import pytest

from revstep import _cli, lm
from revstep.errors import RevstepError

TINY = (
    "--tokenizer bytes --layers 2 --width 16 --heads 2 --context 16 --batch 2 --steps 6 --eval-batches 1"
    " --no-progress --device cpu".split()
)


def test_train_resume_generate(text, tmp_path, capsys):
    out = str(tmp_path / "run")
    data = ["--data", str(text)]
    assert (
        _cli.main(
            [
                "train",
                *data,
                *TINY,
                "--scheme",
                "midpoint_blend:a=paper,seed=3",
                "--dropout",
                "0.1",
                "--out",
                out,
                "--stop-at",
                "3",
            ]
        )
        == 0
    )
    assert "step 3 of 6" in capsys.readouterr().out
    assert _cli.main(["train", "--out", out, "--resume"]) == 0
    said = capsys.readouterr().out
    assert "step 6 of 6" in said and "exact" in said and "validation" in said
    whole = str(tmp_path / "whole")
    assert (
        _cli.main(
            [
                "train",
                *data,
                *TINY,
                "--scheme",
                "midpoint_blend:a=paper,seed=3",
                "--dropout",
                "0.1",
                "--out",
                whole,
            ]
        )
        == 0
    )
    logs = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("run", "whole")
    ]
    assert logs[0] == logs[1]
    assert (
        _cli.main(["train", "--out", out, "--resume"]) == 0
        and "nothing to do" in capsys.readouterr().out.splitlines()[-1]
    )
    assert _cli.main(["generate", out, "--prompt", "the", "--count", "9", "--top-k", "5"]) == 0
    assert capsys.readouterr().out.startswith("the")


def test_a_llama_from_the_command_line(text, tmp_path, capsys):
    out = str(tmp_path / "run")
    options = (
        "--model llama --heads 4 --kv-heads 2 --hidden 40 --rope-theta 1000 --norm-eps 1e-6 --untied --dtype"
        " bfloat16 --stop-at 3".split()
    )
    assert _cli.main(["train", "--data", str(text), *TINY, *options, "--out", out]) == 0
    assert (
        _cli.main(["train", "--out", out, "--resume"]) == 0 and "exact (2 states)" in capsys.readouterr().out
    )
    model, _, config = lm.load_model(out)
    expected = dict(
        model="llama", heads=4, kv_heads=2, hidden=40, rope_theta=1000.0, norm_eps=1e-6, tied=False
    )
    assert type(model) is lm.Llama and {name: getattr(config, name) for name in expected} == expected
    assert model.trunk.blocks[0].mlp.gate.weight.shape == (40, 16) and model.trunk.blocks[
        0
    ].attn.qkv.weight.shape == (32, 16)
    assert _cli.main(["generate", out, "--prompt", "the", "--count", "9", "--scheme", "plain"]) == 0
    assert capsys.readouterr().out.startswith("the")


def test_progress_bar_shows_loss_speed_memory_and_reconstruction(text, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # without a terminal there is no bar
    arguments = [part for part in TINY if part != "--no-progress"]
    assert (
        _cli.main(
            [
                "train",
                "--data",
                str(text),
                *arguments,
                "--scheme",
                "blend:c=0.5",
                "--state",
                "fixed64",
                "--out",
                str(tmp_path / "run"),
            ]
        )
        == 0
    )
    bar = capfd.readouterr().err
    assert all(word in bar for word in ("loss ", "tokens/s", " MB", "exact ("))


@pytest.mark.parametrize(
    "arguments, words",
    [
        (
            ["--scheme", "midpont"],
            ["unknown scheme 'midpont'", "did you mean 'midpoint'", "plain, checkpoint, bdia, blend"],
        ),
        (["--scheme", "blend:c=0"], ["0"]),
        (["--state", "fixed16"], ["unknown state 'fixed16'", "fixed32[:frac_bits]"]),
        (["--data", "nowhere.txt"], ["nowhere.txt"]),
        (["--resume"], ["no checkpoint in"]),
        (["--kv-heads", "1"], ["model 'gpt' has no kv_heads"]),
        (["--model", "llama", "--kv-heads", "3"], ["heads 2 is not a multiple of kv_heads 3"]),
        (["--width", "7"], ["width 7"]),
        (["--stop-at", "0"], ["--stop-at"]),
        (["--device", "warp"], ["warp"]),
    ],
)
def test_errors_are_one_sentence(text, tmp_path, capsys, arguments, words):
    code = _cli.main(["train", "--data", str(text), *TINY, "--out", str(tmp_path / "run"), *arguments])
    said = capsys.readouterr().err
    assert (
        code == 2
        and said.startswith("revstep: ")
        and said.count("\n") == 1
        and all(word in said for word in words)
    )


def test_traceback_on_request(tmp_path, capsys):
    assert _cli.main(["generate", str(tmp_path), "--traceback"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "generate"])
def test_help_shows_examples(command, capsys):
    assert _cli.main([command, "--help"]) == 0
    said = capsys.readouterr().out
    assert "examples:" in said and f"revstep {command}" in said.split("examples:")[1]


def test_wrong_command_lines(capsys):
    for arguments in (
        [],
        ["trian"],
        ["train", "--layers", "two"],
        ["train", "--loss-chunk", "x"],
        ["train", "--step", "3"],
    ):
        assert _cli.main(arguments) == 2
        assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, code", [(RevstepError("words"), 2), (OSError(28, "No space left"), 2), (KeyboardInterrupt(), 130)]
)
def test_exit_codes(monkeypatch, capsys, error, code):
    def fail(args):
        raise error

    monkeypatch.setattr(_cli.find_commands()["generate"], "run", fail)
    assert _cli.main(["generate", "x"]) == code and capsys.readouterr().err.startswith("revstep: ")


def test_a_missing_extra_names_the_command_that_installs_it(text, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert (
        _cli.main(
            ["train", "--data", str(text), *TINY, "--tokenizer", "bpe:300", "--out", str(tmp_path / "run")]
        )
        == 2
    )
    assert "pip install 'revstep[lm]'" in capsys.readouterr().err


def test_every_command_describes_itself():
    for name, module in _cli.find_commands().items():
        assert (
            name == module.NAME
            and module.HELP
            and module.EXAMPLES
            and callable(module.run)
            and callable(module.add_arguments)
        )


def test_python_m_revstep_and_nothing_heavy_for_help():
    code = (
        "import sys; from revstep import _cli; _cli.main(['train', '--help']); print([m for m in"
        " ('tokenizers', 'safetensors', 'torch._dynamo', 'revstep.lm._architectures') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    done = subprocess.run([sys.executable, "-m", "revstep", "generate"], capture_output=True, text=True)
    assert done.returncode == 2 and "folder" in done.stderr


def test_the_package_names_what_it_has():
    assert all(getattr(lm, name) is not None for name in lm.__all__)


def test_sizes_and_fractions():
    from revstep import _options

    assert [_options.memory_budget(text) for text in ("0", "0.5", "1.0", "4GB", "4GiB", "1000")] == [
        0,
        0.5,
        1.0,
        4 * 10**9,
        4 * 2**30,
        1000,
    ]
    assert [_options.keep(text) for text in ("auto", "3")] == ["auto", 3]
    for wrong in (
        lambda: _options.memory_budget("lots"),
        lambda: _options.memory_budget("-1"),
        lambda: _options.keep("all"),
    ):
        with pytest.raises(argparse.ArgumentTypeError, match="is neither"):
            wrong()
