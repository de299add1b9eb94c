"""Weights that a folder lacks, has too many of or has in another shape are an error with their names."""

import copy
import json
import re
import shutil

import pytest
import torch
import transformers
from hub import TEXT, make_tokenizer
from models import LAYERS, MODELS, SCHEMES, converted, differing, model
from safetensors.torch import load_file, save_file

from revstep import ConfigError, _cli, hf
from revstep.hf import _sources, _whole

NORM = "model.layers.2.input_layernorm.weight"


def change(folder, edit):
    """The folder's one weight file with other tensors in it: ``edit`` gets them by name and returns some."""
    file = folder / "model.safetensors"
    kept = {name: tensor.clone() for name, tensor in edit(load_file(file)).items()}
    save_file(kept, file, metadata={"format": "pt"})


def configure(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def cut(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def as_pickle(folder):
    """The older file, which torch.load reads."""
    (folder / "pytorch_model.bin").write_bytes(b"no pickle at all")
    (folder / "model.safetensors").unlink()


def shards(folder):
    """The same model in many files, with an index."""
    whole_model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    whole_model.save_pretrained(folder, max_shard_size="20KB")
    return sorted(folder.glob("model-*.safetensors"))


def of_index(folder):
    """The index forgets the first shard, which is there."""
    first = shards(folder)[0].name
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"] = {name: at for name, at in index["weight_map"].items() if at != first}
    file.write_text(json.dumps(index))


#: What is wrong with the folder of a Llama of four layers, and what the error says.
DAMAGED = {
    "half of the tensors": (
        lambda f: change(f, lambda s: {n: s[n] for i, n in enumerate(sorted(s)) if i % 2}),
        r"tensors, 20 missing \(lm_head\.weight, model\.layers\.0\.[^)]* and 4 more\)",
    ),
    "no tensor at all": (lambda f: change(f, lambda s: {}), r"39 missing \(lm_head\.weight, model\."),
    "one tensor": (
        lambda f: change(f, lambda s: {n: s[n] for n in s if n != NORM}),
        rf"1 missing \({re.escape(NORM)}\)",
    ),
    "the head": (
        lambda f: change(f, lambda s: {n: s[n] for n in s if n != "lm_head.weight"}),
        r"1 missing \(lm_head\.weight\)",
    ),
    "a layer more in config.json": (
        lambda f: configure(f, num_hidden_layers=LAYERS + 1),
        r"9 missing \(model\.layers\.4\.input_layernorm\.weight, .*layers\.4\.self_attn\.v_proj\.weight\)",
    ),
    "a layer less in config.json": (
        lambda f: configure(f, num_hidden_layers=LAYERS - 1),
        r"9 unexpected \(model\.layers\.3\.input_layernorm\.weight, ",
    ),
    "a tensor too many": (
        lambda f: change(f, lambda s: s | {"model.layers.2.extra.weight": torch.ones(3)}),
        r"1 unexpected \(model\.layers\.2\.extra\.weight\)",
    ),
    "another shape": (
        lambda f: change(f, lambda s: s | {NORM: torch.ones(7)}),
        rf"1 of another shape \({re.escape(NORM)} is \[7\], expected \[32\]\)",
    ),
    "another vocabulary": (
        lambda f: configure(f, vocab_size=97),
        r"2 of another shape \(lm_head\.weight is \[96, 32\], expected \[97, 32\], model\.embed_tokens",
    ),
    "a tensor of another name": (
        lambda f: change(f, lambda s: {n.replace("layers.2.input_", "layers.2.output_"): s[n] for n in s}),
        rf"1 missing \({re.escape(NORM)}\); 1 unexpected \(model\.layers\.2\.output_layernorm\.weight\)",
    ),
    "a file cut short": (cut, "a weight file of .* is damaged"),
    "no pickle": (as_pickle, "a weight file of .* is damaged"),
    "an absent shard": (
        lambda f: shards(f)[1].unlink(),
        r"lacks model-00002-of-\d+\.safetensors, in which model\.safetensors\.index\.json says",
    ),
    "an index with a shard too few": (of_index, r"[1-9]\d* missing \("),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """``converted`` and ``plain``, with the same weights and a tokenizer."""
    root = tmp_path_factory.mktemp("saved")
    for name, made in (("converted", converted("Llama")), ("plain", model("Llama"))):
        made.save_pretrained(root / name)
        make_tokenizer().save_pretrained(root / name)
    return root


@pytest.fixture
def damaged(saved, tmp_path):
    def make(name, kind):
        shutil.copytree(saved / kind, tmp_path / kind)
        DAMAGED[name][0](tmp_path / kind)
        return tmp_path / kind, DAMAGED[name][1]

    return make


@pytest.mark.parametrize("name", DAMAGED)
def test_a_converted_model(damaged, name):
    folder, words = damaged(name, "converted")
    for load in (hf.from_pretrained, _sources.load_model, lambda f: _sources.load_model(f, plain=True)):
        with pytest.raises(ConfigError, match=words):
            load(folder)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_plain_model(damaged, name):
    folder, words = damaged(name, "plain")
    with pytest.raises(ConfigError, match=words):
        _sources.load_model(folder)


COMMANDS = ["convert FOLDER OUT", "finetune FOLDER --data TEXT --out OUT", "generate --hf FOLDER --prompt x"]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_end_in_one_sentence_and_write_nothing(damaged, tmp_path, capsys, command):
    folder, words = damaged("half of the tensors", "plain")
    (tmp_path / "text.py").write_text(TEXT)
    paths = {"FOLDER": folder, "OUT": tmp_path / "out", "TEXT": tmp_path / "text.py"}
    assert _cli.main([str(paths.get(word, word)) for word in command.split()]) == 2
    said = capsys.readouterr().err
    assert re.search(words, said) and said.startswith("revstep: ") and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_loader_that_does_not_look_makes_tensors_up(damaged, monkeypatch):
    """The mutant: without the look at the report half of a model loads, with other numbers each time."""
    monkeypatch.setattr(_whole, "refuse_incomplete", lambda *args: None)
    folder, _ = damaged("half of the tensors", "converted")
    one, two = (hf.from_pretrained(folder).state_dict() for _ in range(2))
    assert differing(one, two) != []


# ---- what is no fault ----

#: Changes to the folder of a model that leave every tensor of it known.
WHOLE = {
    "as saved": ({}, lambda f: None),
    "shards": ({}, shards),
    "an old index beside one file": (
        {},
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "b.safetensors"}}'),
    ),
    "a tied head": ({"tie_word_embeddings": True}, lambda f: None),
    "a tied head that is there as well": (
        {"tie_word_embeddings": True},
        lambda f: change(f, lambda s: s | {"lm_head.weight": s["model.embed_tokens.weight"]}),
    ),
    "a tied head instead of the embeddings": (
        {"tie_word_embeddings": True},
        lambda f: change(
            f, lambda s: {n.replace("model.embed_tokens", "lm_head"): s[n] for n in s}
        ),
    ),
    "a buffer that older versions saved": (
        {},
        lambda f: change(f, lambda s: s | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}),
    ),
    "16-bit weights": ({}, lambda f: change(f, lambda s: {n: s[n].bfloat16() for n in s})),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_whole_models_load(tmp_path, name):
    options, edit = WHOLE[name]
    made = converted("Llama", **options)
    made.save_pretrained(tmp_path)
    edit(tmp_path)
    again = hf.from_pretrained(tmp_path, dtype=torch.float32).state_dict()
    expected = made.state_dict()
    if name == "16-bit weights":
        expected = {n: t.bfloat16().float() for n, t in expected.items()}
    assert differing(again, expected) == []


def test_a_tied_head_and_no_embeddings_either(tmp_path):
    converted("Llama", tie_word_embeddings=True).save_pretrained(tmp_path)
    change(tmp_path, lambda s: {n: s[n] for n in s if "embed_tokens" not in n})
    with pytest.raises(ConfigError, match=r"missing \(lm_head\.weight, model\.embed_tokens\.weight\)"):
        hf.from_pretrained(tmp_path)


#: What one missing tensor of the file may be to the model.
KINDS = "missing|of another shape|cannot be made from what is there"


@pytest.mark.parametrize("family", MODELS)
def test_a_tensor_missing_from_any_family(tmp_path, family):
    """Also where transformers reads several tensors of the file into one of the model, as with experts."""
    converted(family).save_pretrained(tmp_path)
    names = sorted(load_file(tmp_path / "model.safetensors"))
    for gone in {re.sub(r"\d+", "#", n): n for n in names if re.search(r"\.2\..*weight$", n)}.values():
        converted(family).save_pretrained(tmp_path)
        change(tmp_path, lambda s: {n: s[n] for n in s if n != gone})  # noqa: B023
        layer = re.search(r"\.\d+\.", gone)[0]
        with pytest.raises(ConfigError, match=rf"1 ({KINDS}) \(.*{re.escape(layer)}"):
            hf.from_pretrained(tmp_path)


@pytest.mark.parametrize("option", ["ignore_mismatched_sizes", "output_loading_info"])
def test_options_that_would_let_it_pass(saved, option):
    with pytest.raises(ConfigError, match=f"{option} is on; expected it off"):
        hf.from_pretrained(saved / "converted", **{option: True})
    assert hf.conversion(hf.from_pretrained(saved / "converted", **{option: False})) is not None


# ---- a class of its own ----


class Derived(transformers.LlamaForCausalLM):
    """A class that transformers does not have."""


def derived():
    plain = model("Llama")
    made = Derived(copy.deepcopy(plain.config))
    made.load_state_dict(plain.state_dict())
    return hf.convert(made.eval(), **SCHEMES["blend"], say=None)


def test_a_class_that_transformers_does_not_have(tmp_path):
    made = derived()
    made.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"names the class Derived, .*model_class=Derived"):
        hf.from_pretrained(tmp_path)
    again = hf.from_pretrained(tmp_path, model_class=Derived)
    assert type(again) is Derived and differing(again.state_dict(), made.state_dict()) == []


def test_a_class_whose_code_lies_in_the_folder(tmp_path):
    """As custom models of the hub are: config.json names the class and the file."""
    made = derived()
    made.save_pretrained(tmp_path)
    code = "import transformers\n\n\nclass Derived(transformers.LlamaForCausalLM):\n    pass\n"
    (tmp_path / "modeling_derived.py").write_text(code)
    configure(tmp_path, auto_map={"AutoModelForCausalLM": "modeling_derived.Derived"})
    again = hf.from_pretrained(tmp_path, trust_remote_code=True)
    assert type(again).__name__ == "Derived" and differing(again.state_dict(), made.state_dict()) == []
    assert hf.conversion(again) is not None
