"""``revstep plan``."""

import json

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
from plan_step import configs

from revstep._cli import main


@pytest.fixture
def folder(tmp_path):
    configs(hidden=64)["llama"].save_pretrained(tmp_path)
    return str(tmp_path)


def test_table_and_json(folder, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert main(["plan", folder, "--seq", "64", "--memory", "6MB", "--batch", "2", "--json", str(out)]) == 0
    assert "checkpointed" in capsys.readouterr().out
    data = json.loads(out.read_text())
    assert [r["mode"] for r in data["rows"]] == ["plain", "checkpointed", "reversible"] * 2 and data[
        "batch"
    ] == 2


def test_every_option(folder, capsys):
    options = (
        "--dtype bfloat16 --weights float32 --optimizer sgd --scheme midpoint --state fixed64 --lora 4"
        " --lora-all-linear --gpus 4 --engine fsdp --chunk 32 --accumulate"
    )
    assert (
        main(["plan", folder, "--seq", "64", "--memory", "3MiB", "--headroom", "0.1", *options.split()]) == 0
    )
    text = capsys.readouterr().out
    for part in (
        "bfloat16 autocast on float32 weights",
        "sgd",
        "midpoint, fixed64",
        "lora:r=4,targets=all-linear",
        "4 GPUs, fsdp",
        "after 10% headroom",
    ):
        assert part in text


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["nowhere", "--seq", "8"], "nowhere is not there"),
        (["{folder}", "--seq", "0"], "sequence is 0"),
        (["{folder}", "--seq", "8", "--lora-all-linear"], "give the rank"),
        (["{folder}", "--seq", "64", "--memory", "100kB"], "does not fit in 95 KB"),
    ],
)
def test_errors_are_one_sentence(folder, arguments, message, capsys):
    assert main(["plan", *(a.format(folder=folder) for a in arguments)]) == 2
    assert message in capsys.readouterr().err
