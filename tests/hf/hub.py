"""A tiny Llama saved as a hub would have it, with a tokenizer trained here, and the command line on it."""

import json
import re

import pytest
import tokenizers
import torch
import transformers
from safetensors.torch import load_file

from revstep import _cli, hf
from revstep.hf import _sources

END = "<|endoftext|>"
TEXT = "".join(f"def f{i}(x):\n    return x + {i % 7}  # the state can be rebuilt\n\n" for i in range(120))


def make_tokenizer():
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    bpe.train_from_iterator(
        [TEXT],
        tokenizers.trainers.BpeTrainer(
            vocab_size=300, special_tokens=[END], show_progress=False, initial_alphabet=alphabet
        ),
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token=END, eos_token=END)


class Stops:
    """Ctrl-C after the second step."""

    asked, signal = 0, 2

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    @property
    def requested(self):
        self.asked += 1
        return self.asked == 2


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """``model`` (plain, weights large enough that layers matter), ``converted``, ``bare`` (no tokenizer),
    ``empty``, and ``text.py``.
    """
    root = tmp_path_factory.mktemp("hub")
    tokenizer = make_tokenizer()
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4.0)
    model.save_pretrained(root / "model")
    tokenizer.save_pretrained(root / "model")
    model.save_pretrained(root / "bare")
    (root / "empty").mkdir()
    (root / "text.py").write_text(TEXT, encoding="utf-8")
    hf.convert(model, "blend:c=0.25", say=None)
    model.save_pretrained(root / "converted")
    tokenizer.save_pretrained(root / "converted")
    return root


@pytest.fixture
def revstep(hub, tmp_path, capsys):
    """``revstep(words)`` -> (exit code, stdout, stderr); MODEL, TEXT and OUT stand for paths."""

    def call(words):
        names = {
            "MODEL": hub / "model",
            "CONVERTED": hub / "converted",
            "BARE": hub / "bare",
            "EMPTY": hub / "empty",
            "TEXT": hub / "text.py",
            "OUT": tmp_path,
        }
        capsys.readouterr()  # of what the test itself loaded
        parts = [re.sub(r"^[A-Z]+", lambda m: str(names.get(m[0], m[0])), word) for word in words.split()]
        code = _cli.main(parts)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def weights(folder):
    return load_file(folder / "model.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def check_plain(folder, wanted):
    """The folder holds the plain model with these weights, to transformers and to us."""
    assert not _sources.converted(folder) and "revstep" not in json.loads(
        (folder / "config.json").read_text()
    )
    assert equal(weights(folder), wanted)
    assert hf.conversion(transformers.AutoModelForCausalLM.from_pretrained(folder)) is None
