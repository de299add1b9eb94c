"""Folders of peft adapters come back converted, as what they were trained as, every tensor of them read."""

import json
import re
import shutil

import pytest
import torch
import transformers
from models import SCHEMES, converted, differing, gradients, model, tokens
from safetensors.torch import load_file, save_file
from transformers import LlamaForSequenceClassification

from revstep import ConfigError, hf
from revstep.hf import _convert, _settings, _sources

peft = pytest.importorskip("peft")

LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
CAUSAL = LORA | {"task_type": "CAUSAL_LM"}
KINDS = {
    "LoRA": lambda: peft.LoraConfig(**CAUSAL),
    "LoRA without a task": lambda: peft.LoraConfig(**LORA),
    "DoRA": lambda: peft.LoraConfig(**CAUSAL, use_dora=True),
    "IA3": lambda: peft.IA3Config(
        task_type="CAUSAL_LM",
        target_modules=["q_proj", "down_proj"],
        feedforward_modules=["down_proj"],
        init_ia3_weights=False,
    ),
    "the head as well": lambda: peft.LoraConfig(**CAUSAL, modules_to_save=["lm_head"]),
    "two tokens as well": lambda: peft.LoraConfig(**CAUSAL, trainable_token_indices=[3, 4]),
    "prompts": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}  # fmt: skip
#: A converted model and how its folder is called in the tests.
BASES = {
    "Llama": lambda: converted("Llama"),
    "two streams": lambda: converted("Llama", "hamiltonian"),
    "Gemma2": lambda: converted("Gemma2", convert={"keep": 1, "state": "fixed32:18"}),
}


def adapted(made, kind="LoRA"):
    torch.manual_seed(4)
    made = peft.get_peft_model(made, KINDS[kind]())
    with torch.no_grad():  # whatever is saved differs from how it begins
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    return made.eval()


@torch.no_grad()
def logits(module):
    return module(input_ids=tokens(), use_cache=False).logits


def base_folder(tmp_path, name="Llama"):
    BASES[name]().save_pretrained(tmp_path / "base")
    return hf.from_pretrained(tmp_path / "base")


def adapters(tmp_path, kind="LoRA", name="Llama"):
    """(folder of adapters on a folder of a converted model, the model that they were saved from)"""
    made = adapted(base_folder(tmp_path, name), kind)
    made.save_pretrained(tmp_path / "adapters")
    return tmp_path / "adapters", made


CASES = [("Llama", kind) for kind in KINDS] + [(name, "LoRA") for name in BASES if name != "Llama"]


@pytest.mark.parametrize("name, kind", CASES)
def test_saved_and_loaded(tmp_path, name, kind):
    folder, made = adapters(tmp_path, kind, name)
    again = hf.from_pretrained(folder)
    assert type(again) is type(made) and type(again.get_base_model()) is type(made.get_base_model())
    assert str(hf.conversion(again)) == str(hf.conversion(made)) and not again.training
    assert torch.equal(logits(again), logits(made)) and differing(again.state_dict(), made.state_dict()) == []
    if kind != "prompts":  # peft leaves them trainable
        assert not any(p.requires_grad for p in again.parameters())
    with torch.no_grad(), again.disable_adapter():
        assert not torch.equal(logits(again), logits(made)), "the adapters should be seen in the logits"


def test_training_goes_on(tmp_path):
    folder, made = adapters(tmp_path)
    again = hf.from_pretrained(folder, is_trainable=True)
    trained = {n for n, p in again.named_parameters() if p.requires_grad}
    assert trained == {n for n, p in made.named_parameters() if p.requires_grad} and trained
    assert differing(gradients(again.train()), gradients(made.train())) == []
    assert hf.conversion(again).report.exact


def test_options_go_to_the_base_model(tmp_path):
    folder, _ = adapters(tmp_path)
    again = hf.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    assert again.get_base_model().dtype == torch.bfloat16 and again.config._attn_implementation == "eager"


def test_what_the_trainer_saves(tmp_path):
    made = adapted(base_folder(tmp_path)).train()
    options = {"max_steps": 1, "save_steps": 1, "report_to": "none", "use_cpu": True}
    args = transformers.TrainingArguments(output_dir=str(tmp_path / "run"), **options)
    rows = [{"input_ids": row, "labels": row} for row in tokens(4)]
    transformers.Trainer(model=made, args=args, train_dataset=rows).train()
    again = hf.from_pretrained(tmp_path / "run" / "checkpoint-1")
    assert torch.equal(logits(again), logits(made.eval()))


def test_a_head_for_classification(tmp_path):
    plain = model("Llama")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**plain.config.to_diff_dict() | {"num_labels": 3})
    base = LlamaForSequenceClassification(config)
    hf.convert(base, "blend", say=None).save_pretrained(tmp_path / "base")
    made = hf.from_pretrained(tmp_path / "base")
    made = peft.get_peft_model(made, peft.LoraConfig(**LORA, task_type="SEQ_CLS")).eval()  # and its head
    made.save_pretrained(tmp_path / "adapters")
    again = hf.from_pretrained(tmp_path / "adapters")
    assert type(again.get_base_model()) is LlamaForSequenceClassification
    assert torch.equal(logits(again), logits(made))


# ---- where the settings are, and the base ----


def test_settings_beside_the_adapters(tmp_path):
    """A base that was converted in memory: the recipe of the message is followed."""
    model("Llama").save_pretrained(tmp_path / "base")
    made = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    made = adapted(hf.convert(made, SCHEMES["blend"]["scheme"], keep=1, say=None))
    folder = tmp_path / "adapters"
    made.save_pretrained(folder)
    advice = r"nor its base model .* has reversible settings.*model\.config\.save_pretrained\(folder\)"
    with pytest.raises(ConfigError, match=advice):
        hf.from_pretrained(folder)
    made.config.save_pretrained(folder)
    again = hf.from_pretrained(folder)
    assert torch.equal(logits(again), logits(made)) and hf.conversion(again).stack.keep == 1
    hf.revert(again)
    assert not hasattr(again.config, _settings.KEY)
    plain = peft.AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(logits(again), logits(plain)), "peft loads the same folder as the plain model"


def test_a_base_that_has_moved(tmp_path):
    folder, made = adapters(tmp_path)
    shutil.move(tmp_path / "base", tmp_path / "moved")
    with pytest.raises(ConfigError, match=r"base model of the adapters .*, which cannot be read.*pass base="):
        hf.from_pretrained(folder)
    assert torch.equal(logits(hf.from_pretrained(folder, base=tmp_path / "moved")), logits(made))


def test_a_base_that_is_not_named(tmp_path):
    folder, made = adapters(tmp_path)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ConfigError, match="names no base model; expected its folder: pass base="):
        hf.from_pretrained(folder)
    assert torch.equal(logits(hf.from_pretrained(folder, base=tmp_path / "base")), logits(made))


def test_a_base_of_no_adapters(tmp_path):
    base_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"has no adapter_config\.json; .* leave base= out"):
        hf.from_pretrained(tmp_path / "base", base=tmp_path)


def test_adapters_and_a_model_in_one_folder(tmp_path):
    """transformers would take the adapters and leave the model unread."""
    folder, _ = adapters(tmp_path)
    shutil.copy(tmp_path / "base" / "model.safetensors", folder)
    with pytest.raises(ConfigError, match=r"holds peft adapters .* and a model \(model\.safetensors\)"):
        hf.from_pretrained(folder)


def test_commands_name_the_way(tmp_path):
    folder, _ = adapters(tmp_path)
    for load in (_sources.load_model, _sources.converted):
        with pytest.raises(ConfigError, match=r"holds peft adapters; .*hf\.from_pretrained.*merge_and_"):
            load(folder)


# ---- damaged ones ----

A = "base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight"
DAMAGED = {
    "half of them": (lambda s: {n: s[n] for n in s if "lora_A" in n}, r"8 missing \(.*layers\.0\..*lora_B"),
    "one": (lambda s: {n: s[n] for n in s if n != A}, r"1 missing \(.*layers\.2\.self_attn\.q_proj\.lora_A"),
    "none": (lambda s: {}, r"16 missing \(.*lora_A"),
    "too many": (lambda s: s | {A.replace("2", "7"): torch.ones(2, 32)}, r"1 unexpected \(.*layers\.7\."),
    "another rank": (lambda s: s | {A: torch.ones(3, 32)}, r"size mismatch for .*layers\.2\..*lora_A"),
}  # fmt: skip


def damage(folder, name):
    file = folder / "adapter_model.safetensors"
    edited = DAMAGED[name][0](load_file(file))
    save_file({n: t.clone() for n, t in edited.items()}, file, metadata={"format": "pt"})


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_adapters(tmp_path, name):
    folder, _ = adapters(tmp_path)
    damage(folder, name)
    with pytest.raises(ConfigError, match=re.compile(DAMAGED[name][1], re.DOTALL)):
        hf.from_pretrained(folder)


def test_a_damaged_base(tmp_path):
    folder, _ = adapters(tmp_path)
    file = tmp_path / "base" / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "norm" not in n}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"9 missing \(model\.layers\.0\.input_layernorm\.weight"):
        hf.from_pretrained(folder)


def test_a_loader_that_does_not_look_begins_adapters_anew(tmp_path, monkeypatch):
    """The mutant: without the look at peft's report, half of the adapters begin anew."""
    folder, made = adapters(tmp_path)
    damage(folder, "half of them")
    monkeypatch.setattr(_convert, "refuse_incomplete", lambda *args: None)
    assert not torch.equal(logits(hf.from_pretrained(folder)), logits(made))
