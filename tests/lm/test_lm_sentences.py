"""Refusals of language-model runs that no other test reads."""

import json
import math
import sys

import numpy as np
import pytest
import tokenizers
import torch

from revstep import ConfigError, RevstepError, _files, lm
from revstep.lm import _data, _run, _sampler, _session, _tokenizer


@pytest.fixture
def corpus(text, tmp_path):
    lm.prepare(tmp_path / "data", [text], tokenizer="bytes")
    return tmp_path / "data"


def rewrite(folder, **values):
    """tokens.json with other values and a seal of its own, as another program could have written it."""
    header = _files.unsealed(json.loads((folder / "tokens.json").read_text(encoding="utf-8")))
    kept = {name: value for name, value in (header | values).items() if value is not None}
    (folder / "tokens.json").write_bytes(_files.sealed(kept))


def test_no_sources_on_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(_data.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ConfigError, match=r"no Python sources in .*\(limit none\): name files or folders"):
        lm.standard_library()


@pytest.mark.parametrize(
    "values, said",
    [
        ({"format": "revstep-tokens-9"}, "they are of format 'revstep-tokens-9', this version reads"),
        ({"sha256": None}, "the hashes are missing"),
        ({"tokenizer": 3}, "the hashes are missing"),
        ({"dtype": "<i8"}, "dtype"),
    ],
)
def test_tokens_of_another_program(corpus, values, said):
    rewrite(corpus, **values)
    with pytest.raises(ConfigError, match=said):
        _data.Corpus.open(corpus)


def test_tokens_that_cannot_be_opened(corpus):
    (corpus / "tokens.bin").unlink()
    (corpus / "tokens.bin").mkdir()
    with pytest.raises(ConfigError, match="cannot open the tokens in"):
        _data.Corpus.open(corpus)


def test_a_window_longer_than_the_text():
    with pytest.raises(ConfigError, match="5 tokens cannot fill a window of 17; give more text or a smaller"):
        _data.Batches(np.zeros(5, np.uint16), 2, 16, 0)


@pytest.mark.parametrize("state", ["{", "3", '{"bit_generator": "MT19937"}'])
def test_a_place_in_the_data_that_is_none(state):
    batches = _data.Batches(np.zeros(50, np.uint16), 2, 16, 0)
    with pytest.raises(RevstepError, match=r"the saved place in the data cannot be read: .*older checkpoint"):
        batches.load_state_dict(state)
    batches.load_state_dict(_data.Batches(np.zeros(50, np.uint16), 2, 16, 1).state_dict())


def saved_tokenizer(path, ids):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="a"))
    path.write_text(made.to_str(), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "ids, said",
    [
        ({"a": 0, "b": 5}, "the tokenizer has the id 5 among 2; expected 0 to 1"),
        ({"a": 0, "b": 1}, r"the tokenizer has no <\|endoftext\|> token"),
    ],
)
def test_a_tokenizer_that_is_none_of_a_run(tmp_path, ids, said):
    with pytest.raises(ConfigError, match=said):
        _tokenizer.load_tokenizer(saved_tokenizer(tmp_path / "tokenizer.json", ids))


@pytest.mark.parametrize("content", ["[]", "{", '{"model": {"type": "BPE"}}'])
def test_a_file_that_is_no_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="tokenizer"):
        _tokenizer.load_tokenizer(tmp_path / "tokenizer.json")


def test_weights_and_tokenizer_of_two_runs(config, tmp_path):
    lm.train(config(steps=1))
    data = tmp_path / "run" / "data"
    path = saved_tokenizer(data / "tokenizer.json", {"a": 0, "<|endoftext|>": 1})
    rewrite(data, tokenizer=_tokenizer.fingerprint(_tokenizer.load_tokenizer(path)), vocab=2)
    with pytest.raises(ConfigError, match=r"has 2 ids, the weights in .* are for 257: they are of two runs"):
        _sampler.load_model(tmp_path / "run")


@pytest.mark.parametrize("error", [RuntimeError("size mismatch\nfor many"), AttributeError("no such thing")])
def test_a_checkpoint_of_another_shape(config, tmp_path, monkeypatch, error):
    lm.train(config(steps=2, save_every=1))

    def restore(run, saved):
        raise error

    monkeypatch.setattr(_run.Run, "restore", restore)
    with pytest.raises(lm.CheckpointError, match=r"does not fit the run that it says it is of \(") as caught:
        lm.train(config(steps=4, save_every=1), resume=True)
    assert str(error).splitlines()[0] in str(caught.value) and "\n" not in str(caught.value)


def test_memory_where_the_system_keeps_no_count(monkeypatch):
    assert _session.peak_memory(torch.device("cpu")) > 2**20
    monkeypatch.setitem(sys.modules, "resource", None)  # Windows
    assert _session.peak_memory(torch.device("cpu")) == 0


def test_lines_of_steps_that_are_done_again(tmp_path):
    """A line in the middle that is none goes, and those after it stay where their step is done."""
    log = tmp_path / "log.jsonl"
    _session._cut(log, 3)
    assert not log.exists()
    log.write_bytes(b'{"step": 1}\n[]\n{"step": 2}\n{"step": 3}\n{"st')
    _session._cut(log, 3)
    assert log.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize(
    "line, step",
    [(b'{"step": 3}\n', 3), (b'{"step": 3}', math.inf), (b'{"st\n', math.inf), (b"[]\n", math.inf)],
)
def test_the_step_of_a_line(line, step):
    assert _session._step_of(line) == step
