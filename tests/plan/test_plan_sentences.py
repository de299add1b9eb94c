"""Refusals of ``plan`` that no other test reads."""

import dataclasses
import json
import types

import pytest
from torch import nn

from revstep import ConfigError, UnsupportedError
from revstep.plan import _meter, _modes, _text, plan

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


def test_why_the_loss_has_no_chunks(monkeypatch):
    capped = types.SimpleNamespace(config=types.SimpleNamespace(final_logit_softcapping=30.0))
    assert "caps its logits (final_logit_softcapping)" in _meter.why_not(capped)

    def refuse(model):
        raise UnsupportedError("its head is no matrix; expected nn.Linear")

    plainer = types.SimpleNamespace(config=types.SimpleNamespace())
    monkeypatch.setattr(_meter, "plain_head", refuse)
    assert _meter.why_not(plainer) == "its head is no matrix"
    monkeypatch.setattr(_meter, "plain_head", lambda model: nn.Linear(2, 3))
    assert _meter.why_not(plainer) is None
    monkeypatch.setattr(_meter, "lacking", lambda weight: f"torch 9 for {tuple(weight.shape)}")
    assert _meter.why_not(plainer) == "it needs torch 9 for (3, 2)"


def test_layers_without_an_mlp_are_not_planned_by_tiles():
    with pytest.raises(
        ConfigError, match="Linear has no MLP that could be taken by tiles: plan without tile"
    ):
        _meter.by_tiles([nn.Linear(2, 2)], 4)


def test_the_command_names_the_tile(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    made = plan(str(tmp_path), sequence=64, dtype="float32", chunk=16, trainable="all", memory=1)
    assert "--tile" not in _text._how(made, "MODEL", made.rows[-1], "midpoint")
    tiled = dataclasses.replace(made, settings=made.settings | {"tile": 16})
    assert "--scheme midpoint --tile 16" in _text._how(tiled, "MODEL", made.rows[-1], "midpoint")


def test_the_choice_says_what_the_step_inside_backward_would_gain(tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    made = plan(str(tmp_path), sequence=64, dtype="float32", chunk=16, trainable="all", memory=1)
    best = min(p.peak for p in made.points if not p.fused_step)
    said = _text.choice(dataclasses.replace(made, memory=best))
    assert said.startswith("Fastest that fits") and "; with --fused-step " in said
