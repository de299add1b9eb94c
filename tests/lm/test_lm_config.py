"""Configurations and scheme strings: what is refused, and that the refusal says what to do."""

import json

import pytest

from revstep import lm
from revstep.errors import ConfigError

BAD = [
    ({"layers": -1}, "layers is -1"),
    ({"width": 10, "heads": 4}, "not a multiple"),
    ({"dropout": 1.0}, "dropout is 1.0"),
    ({"lr": 0.0}, "lr is 0.0"),
    ({"min_lr": 1.0}, "min_lr is 1.0"),
    ({"steps": 0}, "steps is 0"),
    ({"steps": 2.5}, "steps is 2.5"),
    ({"batch": True}, "batch is True"),
    ({"dtype": "float8"}, "one of float32, bfloat16"),
    ({"start": "leap"}, "repeat, euler"),
    ({"tokenizer": "bpe:12"}, "bpe:N"),
    ({"tokenizer": "words"}, "bytes"),
    ({"state": "fixed16"}, "fixed32[:frac_bits], fixed64"),
    ({"state": "float32:3"}, "fixed32:F"),
    ({"scheme": "blend:c"}, "option=value"),
    ({"scheme": "blend:"}, "name:option=value"),
    ({"scheme": "plain:c=1"}, "no options"),
    ({"scheme": "blend:c=1,c=2"}, "twice"),
    ({"loss_chunk": -1}, "loss_chunk"),
    ({"model": "bert"}, "model is 'bert'; expected one of gpt, llama"),
    ({"kv_heads": 2}, "model 'gpt' has no kv_heads; leave it out, or choose model llama"),
    ({"norm_eps": 1e-6}, "model 'gpt' has no norm_eps"),
    ({"tied": 1}, "tied is 1"),
    ({"lr": float("nan")}, "lr is nan"),
    ({"val_fraction": 0.0}, "val_fraction"),
    ({"seed": -1}, "seed is -1"),
]

#: Beside model="llama".
BAD_LLAMA = [
    ({"width": 10, "heads": 4}, "width 10 is not a multiple of heads 4"),
    ({"heads": 4, "kv_heads": 3}, "heads 4 is not a multiple of kv_heads 3"),
    ({"heads": 4, "kv_heads": 8}, "heads 4 is not a multiple of kv_heads 8"),
    ({"width": 12, "heads": 4}, "a head has 3 channels (width 12, heads 4)"),
    ({"kv_heads": -1}, "kv_heads is -1"),
    ({"hidden": 1.5}, "hidden is 1.5"),
    ({"rope_theta": 1.0}, "rope_theta is 1.0"),
    ({"norm_eps": 0.0}, "norm_eps is 0.0"),
]


@pytest.mark.parametrize(
    "changes, words",
    BAD + [({"model": "llama", **changes}, words) for changes, words in BAD_LLAMA],
    ids=lambda value: str(value)[:40],
)
def test_bad_values_are_refused_in_words(changes, words):
    with pytest.raises(ConfigError) as refused:
        lm.TrainConfig(**changes)
    assert words in str(refused.value)


def test_config_survives_json_and_names_a_typo():
    config = lm.TrainConfig(data="a.txt", scheme="midpoint_blend:a=paper,seed=3")
    assert lm.TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match="did you mean 'layers'"):
        lm.TrainConfig.from_dict({"layrs": 3})


def test_the_shape_is_the_models_own():
    shape = lm.TrainConfig(
        model="llama", heads=8, kv_heads=2, hidden=96, rope_theta=5e5, norm_eps=1e-6, tied=False, context=9
    ).shape(vocab=11)
    assert shape == lm.LlamaConfig(
        vocab=11, heads=8, kv_heads=2, hidden=96, rope_theta=5e5, norm_eps=1e-6, tied=False, context=9
    )
    assert lm.TrainConfig(tied=False).shape(vocab=11) == lm.GPTConfig(vocab=11, tied=False)


def test_unknown_name_of_the_package_is_an_attribute_error():
    with pytest.raises(AttributeError, match="TrainConfig"):
        lm.TrainingConfig  # noqa: B018


def test_keep_and_its_budget():
    assert lm.TrainConfig(keep="auto", memory_budget=0.5).memory_budget == 0.5
    for options, words in (
        ({"keep": "all"}, "keep is 'all'"),
        ({"keep": "auto"}, "memory_budget is None"),
        ({"keep": 1, "memory_budget": 10}, "use keep='auto' with it"),
        ({"save_ops": "mm"}, "save_ops is 'mm'"),
    ):
        with pytest.raises(ConfigError, match=words):
            lm.TrainConfig(**options)
