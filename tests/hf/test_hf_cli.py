"""``revstep convert`` and ``revstep generate --hf`` on a tiny Llama saved as a hub would have it."""

import re
import shutil
import sys

import pytest
import torch
from hub import check_plain, equal, weights

from revstep import hf
from revstep.hf import _sources

# ---- convert ----


def test_convert_and_back(revstep, hub, tmp_path):
    code, said, _ = revstep(
        "convert MODEL OUT/c --calibration TEXT --scheme blend:c=0.5 --start euler --keep 1"
    )
    assert code == 0 and re.search(
        r"loss on [\d,]+ tokens: \d\.\d{4} before, \d\.\d{4} converted \([+-]\d+\.\d\d%\)", said
    )
    assert (
        "calibrated on" in said
        and "FixedPoint(bits=32" in said
        and said.splitlines()[-1] == f"saved in {tmp_path}/c"
    )
    made = hf.conversion(hf.from_pretrained(tmp_path / "c"))
    assert (made.scheme.c, made.stack.start, made.stack.keep) == (0.5, "euler", 1) and equal(
        weights(tmp_path / "c"), weights(hub / "model")
    )
    code, said, _ = revstep("convert OUT/c OUT/p --revert")
    assert code == 0 and "a plain LlamaForCausalLM" in said
    check_plain(tmp_path / "p", weights(hub / "model"))
    with pytest.raises(AssertionError):  # the check sees a folder that is still converted, and other weights
        check_plain(tmp_path / "c", weights(hub / "model"))
    with pytest.raises(AssertionError):
        check_plain(tmp_path / "p", {name: w + 1 for name, w in weights(hub / "model").items()})


def test_auto_prints_the_table_it_chose_from(revstep, tmp_path):
    code, said, _ = revstep("convert MODEL OUT/c --calibration TEXT --tolerance 0.5 --tokens 256")
    assert (
        code == 0
        and said.startswith("original loss")
        and "<- chosen" in said
        and _sources.converted(tmp_path / "c")
    )
    code, _, problem = revstep(
        "convert MODEL OUT/d --calibration TEXT --scheme auto --tolerance 0 --tokens 256"
    )
    assert code == 2 and "tolerance is 0.0" in problem and not (tmp_path / "d").exists()
    code, said, _ = revstep("convert MODEL OUT/e --calibration TEXT --bits 2 --tokens 256")
    assert code == 0 and _sources.load_model(tmp_path / "e").config.revstep["scheme"].startswith(
        "blend:c=0.5/"
    )


def test_the_other_schemes_convert(revstep, tmp_path):
    for options in ("midpoint:h=1", "hamiltonian", "bdia", "midpoint_blend:a=paper --state fixed64"):
        code, _, problem = revstep(f"convert MODEL OUT/c --calibration TEXT --tokens 128 --scheme {options}")
        assert (code, problem) == (0, ""), problem
        assert (
            hf.conversion(_sources.load_model(tmp_path / "c")).scheme.name == options.split()[0].split(":")[0]
        )
        shutil.rmtree(tmp_path / "c")


# ---- generate ----


def test_generate(revstep, hub):
    code, plain, _ = revstep("generate --hf MODEL --prompt def --max-tokens 8 --temperature 0")
    model, tokenizer = _sources.load_model(hub / "model"), _sources.load_tokenizer(hub / "model")
    ids = tokenizer("def", return_tensors="pt")["input_ids"]
    for _ in range(8):  # greedy, by hand, without a cache
        if ids[0, -1] == tokenizer.eos_token_id:
            break
        ids = torch.cat([ids, model(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert code == 0 and plain == tokenizer.decode(ids[0], skip_special_tokens=True) + "\n"
    texts = [revstep(f"generate --hf CONVERTED --count 8 --seed {seed}") for seed in (1, 1, 2)]
    assert [code for code, _, _ in texts] == [0, 0, 0] and texts[0] == texts[1] != texts[2]


# ---- errors ----


@pytest.mark.parametrize(
    "command, words",
    [
        ("convert nowhere OUT/c", ["no folder nowhere", "save_pretrained"]),
        ("convert EMPTY OUT/c", ["no tokenizer"]),
        ("convert BARE OUT/c", ["no tokenizer"]),
        ("convert MODEL OUT/c --scheme blnd", ["unknown scheme 'blnd'", "did you mean 'blend'"]),
        ("convert MODEL OUT/c --state fixed16", ["unknown state"]),
        (
            "convert MODEL OUT/c --scheme blend --tolerance 0.1",
            ["--tolerance goes with --scheme auto", "got --scheme blend"],
        ),
        ("convert MODEL OUT/c --scheme blend --bits 3", ["--bits goes with --scheme auto"]),
        ("convert MODEL OUT/c --bits 9", ["bits is 9.0"]),
        ("convert MODEL OUT/c --calibration OUT/none", ["no file or folder"]),
        ("convert MODEL MODEL", ["name another one"]),
        ("convert CONVERTED OUT/c", ["converted already", "--revert"]),
        ("convert MODEL OUT/c --revert", ["plain model"]),
        ("convert CONVERTED OUT/c --revert --keep 1", ["drop --keep"]),
        ("generate", ["--hf MODEL_DIR"]),
        ("generate run --hf MODEL", ["drop run"]),
        ("generate --hf EMPTY", ["no tokenizer"]),
        ("generate --hf MODEL --count 100", ["64 positions"]),
        ("generate --hf MODEL --device warp", ["warp", "try cpu"]),
    ],
)
def test_errors_are_one_sentence(revstep, command, words, tmp_path):
    code, _, problem = revstep(command)
    assert code == 2 and problem.startswith("revstep: ") and problem.count("\n") == 1, problem
    assert all(word in problem for word in words), problem


def test_a_model_that_is_none(revstep, hub, tmp_path):
    shutil.copytree(hub / "model", tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text('{"model_type": "nothing"}')
    code, _, problem = revstep("generate --hf OUT/m")
    assert code == 2 and "is not a model's" in problem and problem.count("\n") == 1
    shutil.copy(hub / "model" / "config.json", tmp_path / "m" / "config.json")
    (tmp_path / "m" / "model.safetensors").unlink()
    code, _, problem = revstep("generate --hf OUT/m")
    assert code == 2 and "cannot load a causal language model" in problem


def test_missing_transformers_is_named(revstep, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for command in ("convert MODEL OUT/c", "finetune MODEL --out OUT/r", "generate --hf MODEL"):
        code, _, problem = revstep(command)
        assert code == 2 and "pip install 'revstep[hf]'" in problem
