"""Where a model comes from: folders, GGUF files written here, and names on a hub that is asked by nobody."""

import json
import os
import shutil

import gguf_files
import pytest
import torch
import transformers
from hub import check_plain, equal, weights

from revstep import ConfigError, hf
from revstep.hf import _sources

BLEND = "--scheme blend:c=0.0625 --data TEXT --batch 4 --context 32 --device cpu --loss-tolerance 9"


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("REVSTEP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def gguf_file(hub, tmp_path, cache):
    pytest.importorskip("gguf")
    (tmp_path / "files").mkdir()
    file = tmp_path / "files" / "tiny.gguf"
    gguf_files.write(file, _sources.load_model(hub / "model"), _sources.load_tokenizer(hub / "model"))
    return file


def test_a_gguf_file_is_the_model_it_holds(hub, gguf_file, cache):
    said = []
    model, tokenizer = _sources.load(gguf_file, say=said.append)
    ids = torch.randint(0, 300, (2, 16), generator=torch.Generator().manual_seed(0)) % model.config.vocab_size
    assert gguf_files.same_logits(model, _sources.load_model(hub / "model"), ids)
    assert (
        tokenizer("def f1(x)")["input_ids"]
        == _sources.load_tokenizer(hub / "model")("def f1(x)")["input_ids"]
    )
    assert len(said) == 1 and "only once" in said[0]
    assert not getattr(model, "is_quantized", False) and next(model.parameters()).dtype == torch.float32
    # The folder with one.
    _sources.load(gguf_file.parent, say=lambda line: pytest.fail("the tokenizer was built again"))


def test_finetune_of_a_gguf_file_leaves_a_plain_folder(revstep, gguf_file, tmp_path):
    code, _, problem = revstep(
        f"finetune OUT/files/tiny.gguf --out OUT/run --steps 2 {BLEND} --deploy OUT/plain"
    )
    assert (code, problem) == (0, "")  # also no warning of peft about a config.json that is not there
    check_plain(tmp_path / "plain", weights(tmp_path / "run"))


def test_gguf_files_that_cannot_be_used(hub, gguf_file, cache, revstep):
    raw = gguf_file.read_bytes()
    gguf_file.write_bytes(raw[: len(raw) // 2])
    code, _, problem = revstep("finetune OUT/files/tiny.gguf --out OUT/r")
    assert code == 2 and "cannot read" in problem and problem.count("\n") == 1, problem
    model, tokenizer = _sources.load_model(hub / "model"), _sources.load_tokenizer(hub / "model")
    gguf_files.write(gguf_file, model, tokenizer, without=("blk.1.ffn_up.weight",))
    code, _, problem = revstep("finetune OUT/files/tiny.gguf --out OUT/r")
    assert code == 2 and "model.layers.1.mlp.up_proj.weight" in problem and problem.count("\n") == 1, problem
    gguf_files.write(gguf_file.with_name("two.gguf"), model, tokenizer)
    code, _, problem = revstep("finetune OUT/files --out OUT/r")
    assert code == 2 and "holds 2 GGUF files, tiny.gguf, two.gguf" in problem


def test_a_name_on_the_hub(hub, monkeypatch, revstep):
    asked = []

    def download(name, allow_patterns):
        asked.append(name)
        if name != "somebody/a-model":
            raise ConnectionError("no route\nto anywhere")
        return str(hub / "model")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model, _ = _sources.load("somebody/a-model")
    assert equal(model.state_dict(), _sources.load_model(hub / "model").state_dict())
    code, _, problem = revstep("finetune nowhere --out OUT/r")
    assert (
        code == 2
        and "no folder nowhere here" in problem
        and "no route" in problem
        and problem.count("\n") == 1
    )
    assert asked == ["somebody/a-model", "nowhere"]


# ---- folders that cannot be used ----


def set_config(folder, **values):
    """Changes of config.json, as by hand."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | values), encoding="utf-8")


def edited(hub, tmp_path, edit):
    """A copy of the model's folder, changed."""
    shutil.copytree(hub / "model", tmp_path / "copy")
    edit(tmp_path / "copy")
    return tmp_path / "copy"


def replace(name, text):
    return lambda folder: (folder / name).write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "edit, said",
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json; expected a folder"),
        (replace("config.json", "{"), "config.json is not a model's: "),
        (
            lambda folder: set_config(folder, num_hidden_layers=5000),
            "its weights have 30 tensors: the folder",
        ),
        (lambda folder: set_config(folder, num_hidden_layers=4), "model.layers.3"),
        (replace("model.safetensors", "no weights"), "a weight file of .* is damaged"),
        (
            lambda folder: [
                set_config(folder, num_hidden_layers=5000),
                replace("model.safetensors", "no weights")(folder),
            ],
            "a weight file of .* cannot be read",
        ),
        (lambda folder: os.mkfifo(folder / "model-2.safetensors"), "cannot read the folder"),
    ],
)
def test_a_model_folder_that_cannot_be_used(hub, tmp_path, edit, said):
    folder = edited(hub, tmp_path, edit)
    with pytest.raises(ConfigError, match=said) as caught:
        _sources.load_model(folder)
    assert str(folder) in str(caught.value)


def test_a_tokenizer_that_cannot_be_used(hub, tmp_path):
    with pytest.raises(ConfigError, match=r"has no tokenizer; expected one of tokenizer.json"):
        _sources.load_tokenizer(hub / "bare")
    with pytest.raises(ConfigError, match=r"no folder .*nothing is downloaded"):
        _sources.load_tokenizer(tmp_path / "nowhere")
    folder = edited(hub, tmp_path, replace("tokenizer.json", "{}"))
    with pytest.raises(ConfigError, match=r"cannot load the tokenizer of .*save it there with"):
        _sources.load_tokenizer(folder)


def test_a_model_without_a_vocabulary_head(hub, tmp_path):
    """Saved converted, it is loaded as the class that it is, and that is no language model."""
    model = transformers.LlamaModel.from_pretrained(hub / "model")
    hf.convert(model, "blend:c=0.25", say=None).save_pretrained(tmp_path / "bodies")
    with pytest.raises(ConfigError, match="holds a LlamaModel, which has no vocabulary head"):
        _sources.load_model(tmp_path / "bodies")


def test_a_name_that_no_hub_can_have(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *a, **k: pytest.fail("asked the hub"))
    for name in ("two/too/many", "with space", str(tmp_path / "nowhere")):
        with pytest.raises(ConfigError, match=f"no folder {name}; expected a folder"):
            _sources.locate(name)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.delenv("REVSTEP_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert _sources.cache_folder() == tmp_path / "revstep"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert _sources.cache_folder() == tmp_path / "home" / ".cache" / "revstep"
