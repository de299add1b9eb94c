"""What every choice of c costs: rows are measured on both texts, and the parts of a choice are
what they say.
"""

import json

import pytest
import torch

from revstep import _cli
from revstep.errors import ConfigError
from revstep_lab.cases import dial
from revstep_lab.cases.dial import DialCase, run_dial, texts

transformers = pytest.importorskip("transformers", reason="converts models of transformers")

WORDS = " ".join(f"word{k % 97} and {k % 13} more" for k in range(4000))


def tokenizer(text, **_):
    return {"input_ids": [ord(c) % 96 for c in text]}


def load(name):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=512,
        initializer_range=0.4,
    )
    return transformers.LlamaForCausalLM(config), tokenizer


@pytest.fixture(scope="module")
def result():
    said = []
    return run_dial(DialCase(tokens=512, bits=(3.0,), parts=(3.0,)), load, WORDS, said.append)


def test_rows_and_parts(result):
    names = [row["name"] for row in result["rows"]]
    assert names[:2] == ["c = 1/4 in every layer", "c = 1/8 in every layer"] and names[-2:] == [
        "by layer, the default",
        "by layer, 3 bits",
    ]
    assert [row["bits"] for row in result["rows"][:4]] == [2.0, 3.0, 4.0, 5.0] and result["rows"][-1][
        "bits"
    ] <= 3.0
    for which in ("text", "other"):
        falling = [row[which]["divergence"] for row in result["rows"][:4]]
        assert falling == sorted(falling, reverse=True) and falling[-1] > 0
    default = result["rows"][-2]
    assert (
        default["text"]["divergence"] <= 0.004
        and default["text"]["divergence"] != default["other"]["divergence"]
    )
    assert [part["part"] for part in result["without"]] == list(dial.PARTS) and len(
        result["layers"]["c"]
    ) == 5
    assert json.loads(json.dumps(result))["rows"] == result["rows"]


def test_each_part_leaves_out_what_it_says(monkeypatch):
    made = []
    before = dial.scheme_of
    monkeypatch.setattr(dial, "scheme_of", lambda point: made.append(before(point)) or made[-1])
    run_dial(DialCase(tokens=512, bits=(3.0,), parts=(3.0,)), load, WORDS, lambda line: None)
    for scheme, (signs, weights) in zip(made, dial.PARTS.values(), strict=True):
        assert any(c < 0 for c in scheme.c) == signs and any(w != 1.0 for w in scheme.weights) == weights


def test_a_model_that_no_choice_keeps(monkeypatch):
    monkeypatch.setattr(dial.Search, "_consider", lambda self, trial: None)
    text, other = texts(WORDS, tokenizer, 512)
    measured = dial._Measured(load("")[0].eval(), text, other, lambda line: None)
    said = r"no choice of c by layer keeps the model: within 0\.004 nats a token and 0\.50% of its loss$"
    with pytest.raises(ConfigError, match=said):
        measured.chosen(DialCase(tokens=512))


def test_two_texts():
    one, other = texts(WORDS, tokenizer, 1024)
    assert one.shape == other.shape == (2, 512) and not torch.equal(one, other)
    for tokens in (100, 10**6):
        with pytest.raises(ConfigError, match=f"tokens is {tokens}, expected at least 512, and fewer"):
            texts(WORDS, tokenizer, tokens)


def test_the_command(monkeypatch, capsys, tmp_path):
    from revstep_lab.cases import dial

    monkeypatch.setattr(dial, "load_pretrained", load)
    file = tmp_path / "dial.json"
    assert _cli.main(["bench", "dial", "--tokens", "512", "--json", str(file)]) == 0
    said = capsys.readouterr().out
    assert "run reversibly without training" in said and "by layer, 3.8 bits" in said and "with both" in said
    record = json.loads(file.read_text())
    assert (
        record["bench"] == "dial"
        and record["command"] == "revstep bench dial --tokens 512"
        and len(record["goals"]) == 3
    )
