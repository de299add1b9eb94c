"""Refusals of ``plan`` that no other test reads."""

import json

import pytest

from revstep import ConfigError
from revstep.plan import _modes, plan

SMALL = {
    "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3,
    "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 64,
}  # fmt: skip

CASES = {
    "a step in backward, and more passes": (
        {"fused_step": True, "accumulate": 2},
        "fused_step and accumulate",
    ),
    "a step in backward, and processes": ({"fused_step": True, "world": 2}, "fused_step and world = 2"),
    "packed weights that train": ({"weights": "int8"}, "weights are int8, and they cannot be trained"),
    "packed weights in shards": (
        {"weights": "int4", "trainable": "lora:8", "world": 2, "engine": "fsdp"},
        "weights are int4, and how FSDP gathers them is not known here",
    ),
    "no layers": ({"num_hidden_layers": 0}, "num_hidden_layers 0; expected a decoder-only language model"),
    "layers that are no number": (
        {"num_hidden_layers": True},
        "no config of .llama. that transformers takes",
    ),
}


@pytest.mark.parametrize("given, sentence", CASES.values(), ids=CASES)
def test_the_sentence(given, sentence, tmp_path):
    pytest.importorskip("transformers")
    options = dict(given)
    layers = options.pop("num_hidden_layers", 3)
    (tmp_path / "config.json").write_text(json.dumps(SMALL | {"num_hidden_layers": layers}))
    with pytest.raises(ConfigError, match=sentence):
        plan(str(tmp_path), sequence=16, **options)


@pytest.mark.parametrize("change", [{"optimizer": "sgdm"}, {"engine": "deep"}, {"world": 0}, {"world": True}])
def test_a_plan_of_nothing_known(change):
    asked = {"optimizer": "adamw", "world": 1, "engine": "ddp"} | change
    with pytest.raises(ConfigError, match="|".join(change)):
        _modes.static(None, **asked)
