"""Refusals of conversion and fine-tuning that no other test reads."""

import pytest
import torch

import revstep
from revstep import ConfigError, hf

transformers = pytest.importorskip("transformers")


def llama(**options):
    torch.manual_seed(0)
    small = dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=64, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**small | options))


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"dtype": "float8"}, "dtype is 'float8', expected one of"),
        ({"device": "tpu"}, "device is 'tpu', expected auto, cpu or cuda"),
    ],
)
def test_settings(options, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        hf.FineTune(out=str(tmp_path / "out"), **options)


def test_nothing_to_resume(tmp_path):
    pytest.importorskip("accelerate")
    settings = hf.FineTune(out=str(tmp_path), steps=1, batch=1, resume=True)
    with pytest.raises(ConfigError, match=r"there is no checkpoint-N in .* to resume from"):
        hf.finetune(llama(), torch.zeros(2, 8, dtype=torch.long), settings)


@pytest.mark.parametrize(
    "rows", [torch.zeros(8, dtype=torch.long), torch.zeros(2, 8), torch.zeros(0, 8, dtype=torch.long)]
)
def test_rows_that_are_no_tokens(rows, tmp_path):
    pytest.importorskip("accelerate")
    settings = hf.FineTune(out=str(tmp_path / "out"), steps=1, batch=1)
    with pytest.raises(ConfigError, match=r"rows are .*expected token ids \(N, T\)"):
        hf.finetune(llama(), rows, settings)


def test_a_vocabulary_that_is_not_the_heads():
    """The loss in chunks never has the logits, from which transformers takes their number."""
    model = hf.convert(llama(), revstep.Blend(c=0.0625), state=revstep.FixedPoint(frac_bits=20))
    hf.chunk_loss(model, 16)
    model.config.vocab_size = 60
    tokens = torch.randint(0, 60, (1, 8))
    with pytest.raises(ConfigError, match="the head has 64 outputs, the config says vocab_size=60"):
        model(input_ids=tokens, labels=tokens)
