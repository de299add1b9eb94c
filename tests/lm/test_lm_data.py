"""Text to tokens: order, round trips, what is left out and said, and batches that can be put back."""

import json

import numpy as np
import pytest
import torch

from revstep import lm
from revstep._files import sealed, unsealed
from revstep.errors import ConfigError
from revstep.lm._data import read_texts
from revstep.lm._tokenizer import fingerprint


@pytest.mark.parametrize(
    "spec, dtype", [("bytes", np.uint16), ("bpe:300", np.uint16), ("bpe:70000", np.uint16)]
)
def test_corpus_holds_the_documents_in_order(text, tmp_path, spec, dtype):
    corpus = lm.prepare(tmp_path / "d", [text], tokenizer=spec)
    assert isinstance(corpus.tokens, np.memmap) and corpus.tokens.dtype == dtype
    end = corpus.tokenizer.end
    ends = np.flatnonzero(corpus.tokens == end)
    documents = [corpus.tokenizer.decode(part) for part in np.split(corpus.tokens, ends + 1)[:-1]]
    assert documents == [(text / name).read_text() for name in ("a.txt", "b.txt", "sub/c.txt")]
    assert (
        corpus.header["count"] == len(corpus.tokens)
        and corpus.header["files"] == 3
        and corpus.header["tokenizer"] == fingerprint(corpus.tokenizer)
    )


@pytest.mark.parametrize("spec", ["bytes", "bpe:300"])
def test_any_text_round_trips(text, tmp_path, spec):
    tokenizer = lm.prepare(tmp_path / "d", [text], tokenizer=spec).tokenizer
    for sample in ("", "déjà vu \N{SNOWMAN} 日本\n\t\0", "<|endoftext|> spelt out"):
        ids = tokenizer.encode(sample)
        assert tokenizer.end not in ids and tokenizer.decode(ids) == sample
    assert fingerprint(lm.load_tokenizer(tmp_path / "d" / "tokenizer.json")) == fingerprint(tokenizer)


@pytest.mark.parametrize("spec", ["bytes", "bpe:400"])
def test_the_same_text_gives_the_same_files(text, tmp_path, spec):
    for name in ("one", "two"):
        lm.prepare(tmp_path / name, [text], tokenizer=spec)
    for name in ("tokens.bin", "tokenizer.json", "tokens.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_many_ids_are_uint32():
    from revstep.lm._tokenizer import id_dtype

    assert id_dtype(1 << 16) == np.uint16 and id_dtype((1 << 16) + 1) == np.uint32


def test_text_that_is_not_utf8_is_skipped_in_folders_and_refused_by_name(text, tmp_path):
    (text / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.warns(UserWarning, match=r"1 of 4 files were left out.*latin\.txt"):
        corpus = lm.prepare(tmp_path / "d", [text], tokenizer="bytes")
    assert len(corpus.header["skipped"]) == 1
    with pytest.raises(ConfigError, match=r"latin\.txt as UTF-8"):
        lm.prepare(tmp_path / "e", [text / "latin.txt"], tokenizer="bytes")


def test_files_are_found_once_and_missing_ones_named(text):
    found = lm.find_files([text, text / "a.txt"], [".txt"])
    assert [path.name for path, _ in found] == ["a.txt", "b.txt", "c.txt"] and dict(found)[
        (text / "a.txt").resolve()
    ]
    with pytest.raises(ConfigError, match="nowhere"):
        lm.find_files([text / "nowhere"], [".txt"])
    with pytest.raises(ConfigError, match=r"no \.rs file"):
        lm.find_files([text], [".rs"])


def test_the_size_limit_does_not_split_a_character(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("abé", encoding="utf-8")
    both = [(path, True), (path, True)]
    assert [list(read_texts(both, max_bytes=limit)) for limit in (3, 4, 7, 0)] == [
        ["ab"],
        ["abé"],
        ["abé", "ab"],
        ["abé", "abé"],
    ]


def test_standard_library_has_sources_and_no_tests():
    names = lm.standard_library()
    assert any(path.name == "argparse.py" for path in names) and names == sorted(names)
    assert not any({"site-packages", "test", "tests"} & set(path.parts[-4:-1]) for path in names)
    small = lm.standard_library(max_bytes=100_000)
    assert 0 < sum(path.stat().st_size for path in small) <= 100_000 and small == names[: len(small)]


def test_damaged_corpora_are_refused(text, tmp_path):
    folder = tmp_path / "d"
    lm.prepare(folder, [text], tokenizer="bytes")
    whole = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(whole[:-2])
    with pytest.raises(ConfigError, match="its header promises"):
        lm.Corpus.open(folder)
    (folder / "tokens.bin").write_bytes(whole)
    header = unsealed(json.loads((folder / "tokens.json").read_text()))
    (folder / "tokens.json").write_bytes(sealed(header | {"tokenizer": "0" * 16}))
    with pytest.raises(ConfigError, match="not the one that made"):
        lm.Corpus.open(folder)
    (folder / "tokens.json").write_text(json.dumps(header | {"count": 1}))
    with pytest.raises(ConfigError, match="it has no checksum"):
        lm.Corpus.open(folder)
    (folder / "tokens.json").write_bytes(sealed(header))
    (folder / "tokens.bin").write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(ConfigError, match="its checksum differs"):
        lm.Corpus.open(folder)
    with pytest.raises(ConfigError, match="cannot open the tokens"):
        lm.Corpus.open(tmp_path / "nowhere")


def test_split_is_the_tail_and_needs_text(text, tmp_path):
    corpus = lm.prepare(tmp_path / "d", [text], tokenizer="bytes")
    train, val = corpus.split(0.1, 16)
    assert np.array_equal(np.concatenate((train, val)), corpus.tokens) and len(val) == int(
        0.1 * len(corpus.tokens)
    )
    with pytest.raises(ConfigError, match="give more text or a smaller --context"):
        corpus.split(0.1, len(corpus.tokens))


def test_batches_are_shifted_windows_and_go_on_from_a_saved_place():
    tokens = np.arange(200, dtype=np.uint16)
    batches = lm.Batches(tokens, 3, 16, seed=4)
    x, y = batches.next()
    assert x.shape == y.shape == (3, 16) and x.dtype == torch.int64 and torch.equal(y, x + 1)
    place = batches.state_dict()
    after = [batches.next()[0] for _ in range(3)]
    other = lm.Batches(tokens, 3, 16, seed=9)
    other.load_state_dict(json.loads(json.dumps(place)))
    assert all(torch.equal(a, other.next()[0]) for a in after)
    spread = [x for x, _ in batches.spread(4)]
    assert spread[0][0, 0] == 0 and spread[-1][-1, -1] == 198  # from the first window to the last


def test_every_window_can_be_drawn():
    batches = lm.Batches(np.arange(6, dtype=np.uint16), 64, 4, seed=0)
    assert set(batches.next()[0][:, 0].tolist()) == {0, 1}
