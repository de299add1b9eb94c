"""What ``revstep finetune`` refuses, in one sentence each."""

import pytest


@pytest.mark.parametrize(
    "command, words",
    [
        ("finetune EMPTY --out OUT/r", ["no tokenizer"]),
        ("finetune TEXT --out OUT/r", ["is a file and not GGUF"]),
        ("finetune no/such/folder --out OUT/r", ["no folder no/such/folder", "GGUF", "owner/name"]),
        ("finetune MODEL --out MODEL", ["that of the model itself"]),
        ("finetune MODEL --out OUT/r --full --lora 4", ["--lora", "--full"]),
        ("finetune MODEL --out OUT/r --full --lora-targets q_proj", ["--lora-targets", "--full"]),
        ("finetune MODEL --out OUT/r --lora 0", ["--lora is 0", "rank"]),
        ("finetune MODEL --out OUT/r --teacher-weight 0.5", ["--teacher MODEL"]),
        ("finetune MODEL --out OUT/r --val-fraction 2", ["--val-fraction is 2"]),
        ("finetune MODEL --out OUT/r --eval-batches 0", ["--eval-batches is 0"]),
        ("finetune MODEL --out OUT/r --loss-tolerance 0", ["--loss-tolerance is 0"]),
        ("finetune MODEL --out OUT/r --data TEXT --context 128", ["the model has 64 positions"]),
        ("finetune MODEL --out OUT/r --data TEXT --context 1", ["--context is 1"]),
        ("finetune MODEL --out OUT/r --data TEXT --steps 0", ["steps is 0"]),
        ("finetune MODEL --out OUT/r --data OUT/none", ["no file or folder"]),
        (
            "finetune MODEL --out OUT/r --scheme blend --bits 3",
            ["--bits goes with --scheme auto", "got --scheme blend"],
        ),
        (
            "finetune MODEL --out OUT/r --scheme plain --tolerance 0.1",
            ["--tolerance goes with --scheme auto"],
        ),
        ("finetune MODEL --out OUT/r --data TEXT --context 32 --bits 9", ["bits is 9.0"]),
        (
            "finetune CONVERTED --out OUT/r --data TEXT --context 32 --bits 3",
            ["--bits says how to convert, and the folder was saved converted"],
        ),
        (
            "finetune CONVERTED --out OUT/r --data TEXT --context 32 --fit 1GB",
            ["--fit says how to convert, and the folder was saved converted"],
        ),
        (
            "finetune MODEL --out OUT/r --data TEXT --context 32 --scheme plain --tile 16",
            ["--tile is of reversible training, and the scheme is plain"],
        ),
        (
            "finetune MODEL --out OUT/r --data TEXT --context 32 --scheme checkpoint --state fixed32",
            ["--state is of reversible training, and the scheme is checkpoint"],
        ),
        ("finetune MODEL --out OUT/r --scheme blnd", ["unknown scheme 'blnd'"]),
        ("finetune MODEL --out OUT/r --resume", ["no run in", "without --resume"]),
        ("finetune CONVERTED --out OUT/r --data TEXT --context 32 --keep 1", ["--keep says how to convert"]),
        ("train --hf MODEL --data TEXT --out OUT/r", ["revstep finetune", "model --full --data", "--out"]),
        ("train --hf MODEL --lora 8 --scheme bdia", ["revstep finetune", "model --lora 8 --scheme bdia"]),
        ("train --lora 4 --out OUT/r", ["revstep finetune MODEL --lora 4"]),
    ],
)
def test_errors_are_one_sentence(revstep, command, words, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("the hub was asked"))
    code, _, problem = revstep(command)
    assert code == 2 and problem.startswith("revstep: ") and problem.count("\n") == 1, problem
    assert all(word in problem for word in words), problem
