"""Refusals of ``revstep finetune``, ``convert`` and ``generate`` on Hugging Face models that no other test
reads: each one sentence, and nothing left behind.
"""

import json
import shutil

import pytest

from revstep.hf import _sources

BLEND = "--scheme blend:c=0.0625 --data TEXT --batch 4 --device cpu --loss-tolerance 9"


@pytest.mark.parametrize(
    "words, said",
    [
        (f"finetune MODEL --out OUT/r --context 999 {BLEND}", "--context is 999, the model has 64 positions"),
        (f"finetune MODEL --out OUT/r --context 64 --max-bytes 300 {BLEND}", "rows of 64 tokens, 1 of which"),
        (f"finetune MODEL --out OUT/r --context 64 --max-bytes 9 {BLEND}", "expected at least one row of 64"),
        (
            f"finetune MODEL --out OUT/r --context 32 --head-last --teacher MODEL {BLEND}",
            "--head-last is of the loss in chunks, which --teacher rules out: drop one",
        ),
        ("convert MODEL OUT/r --tokens 1 --scheme auto", "--tokens is 1, expected at least 2"),
        ("generate --hf MODEL --count 0", "got --count 0 and --temperature 0.8, expected at least 1 token"),
        ("generate run --hf MODEL", "says how it is converted, and --hf names it: drop run"),
        ("generate --hf MODEL --scheme plain", "drop --scheme"),
    ],
)
def test_refusals(revstep, tmp_path, words, said):
    code, _, problem = revstep(words)
    assert code == 2 and said in problem and problem.count("\n") == 1, problem
    assert not (tmp_path / "r").exists()


def test_files_that_are_no_text_are_counted(revstep, hub, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(hub / "text.py", data / "a.py")
    (data / "b.py").write_bytes(b"\xff\xfe\x00 no text")
    line = f"finetune MODEL --out OUT/r --steps 1 --context 32 {BLEND}".replace("TEXT", "OUT/data")
    code, _, problem = revstep(line)
    assert code == 0 and "1 of 2 files were left out, the first: " in problem and "b.py" in problem


def test_a_tokenizer_that_begins_no_text(revstep, hub, tmp_path):
    shutil.copytree(hub / "model", tmp_path / "copy")
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        file = tmp_path / "copy" / name
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            kept = {key: value for key, value in found.items() if key not in ("bos_token", "eos_token")}
            file.write_text(json.dumps(kept), encoding="utf-8")
    assert _sources.load_tokenizer(tmp_path / "copy").eos_token_id is None
    code, _, problem = revstep("generate --hf OUT/copy --count 1")
    assert code == 2 and problem.endswith("no token that begins a text: give --prompt\n"), problem
    assert revstep("generate --hf OUT/copy --count 1 --prompt def")[0] == 0


@pytest.mark.parametrize(
    "record, said",
    [
        ("[1]", "it is not the record of a run that this version knows"),
        ('{"format": "another"}', "it is not the record of a run that this version knows"),
        ('{"options": {}, "finished": 3, "model": "m"}', "it is not the record of a run"),
        ('{"finished": true, "model": "m"}', "'options' is missing"),
        ("{", "cannot read"),
    ],
)
def test_a_record_that_is_none(revstep, tmp_path, record, said):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "finetune.json").write_text(record, encoding="utf-8")
    code, _, problem = revstep(f"finetune MODEL --out OUT/r --resume --context 32 {BLEND}")
    assert code == 2 and said in problem and "cannot read" in problem and problem.count("\n") == 1, problem
    assert (tmp_path / "r" / "finetune.json").read_text(encoding="utf-8") == record
