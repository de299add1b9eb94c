"""Going on from a checkpoint: every weight comes from it, and one that it lacks is named."""

import pytest
import torch

from revstep import hf
from revstep.errors import ConfigError
from revstep.hf import _finetune as tuning
from revstep.hf._finetune import FineTune, add_lora, finetune

transformers = pytest.importorskip("transformers", reason="trains models of transformers")
pytest.importorskip("accelerate", reason="transformers' Trainer needs it")
safetensors = pytest.importorskip("safetensors.torch", reason="checkpoints are safetensors files")

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
MODELS = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**SIZES, tie_word_embeddings=True)
    ),
    # Its experts have other names in a file than in the model.
    "mixtral": lambda: transformers.MixtralForCausalLM(
        transformers.MixtralConfig(**SIZES, num_local_experts=2)
    ),
}


def start(kind, lora=False):
    torch.manual_seed(0)
    model = hf.convert(MODELS[kind](), "blend:c=0.0625", say=None)
    return add_lora(model, 2, targets="q_proj,v_proj") if lora else model


def rows():
    return torch.randint(0, 64, (8, 8), generator=torch.Generator().manual_seed(1))


def train(model, out, **changes):
    how = FineTune(
        **{"out": str(out), "steps": 4, "batch": 2, "lr": 1e-2, "device": "cpu", "save_every": 2, **changes}
    )
    finetune(model, rows(), how, say=None)
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def differing(one, other):
    return [name for name in one if not torch.equal(one[name], other[name])]


def checkpoint(tmp_path, kind, lora):
    """A run of four steps in ``run``, cut back to its checkpoint of step 2."""
    whole = train(start(kind, lora), tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoint-4").iterdir():
        path.unlink()
    (tmp_path / "run" / "checkpoint-4").rmdir()
    return whole, tmp_path / "run" / "checkpoint-2"


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("lora", [False, True])
def test_every_weight_is_that_of_the_checkpoint(tmp_path, kind, lora):
    if lora:
        pytest.importorskip("peft", reason="LoRA is peft's")
    whole, _ = checkpoint(tmp_path, kind, lora)
    assert differing(whole, train(start(kind, lora), tmp_path / "run", resume=True)) == []


def test_mutant_the_trainers_own_reading(tmp_path, monkeypatch):
    """Mixtral's experts begin again where they began, and only a warning says so."""
    whole, _ = checkpoint(tmp_path, "mixtral", False)
    monkeypatch.setattr(tuning, "load_checkpoint", lambda model, path: None)
    assert any(
        "experts" in name for name in differing(whole, train(start("mixtral"), tmp_path / "run", resume=True))
    )


@pytest.mark.parametrize(
    "lora, file, lost",
    [
        (False, "model.safetensors", "model.layers.1.mlp.up_proj.weight"),
        (True, "adapter_model.safetensors", "q_proj.lora_A.weight"),
    ],
)
def test_what_a_checkpoint_lacks_is_named(tmp_path, lora, file, lost):
    if lora:
        pytest.importorskip("peft", reason="LoRA is peft's")
    _, folder = checkpoint(tmp_path, "llama", lora)
    tensors = safetensors.load_file(folder / file)
    name = next(n for n in tensors if n.endswith(lost))
    for change, word in [
        ({name: None}, "1 missing"),
        ({name: tensors[name][:1].clone()}, "1 of another shape"),
        ({"stranger": torch.zeros(1)}, "1 unexpected"),
    ]:
        changed = {n: t for n, t in {**tensors, **change}.items() if t is not None}
        safetensors.save_file(changed, folder / file, metadata={"format": "pt"})
        model = start("llama", lora)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        with pytest.raises(ConfigError, match=word) as error:
            train(model, tmp_path / "run", resume=True)
        assert ("stranger" if "stranger" in change else lost) in str(error.value) and "checkpoint-2" in str(
            error.value
        )
        assert differing(before, dict(model.named_parameters())) == []


@pytest.mark.parametrize("lora, file", [(False, "model.safetensors"), (True, "adapter_model.safetensors")])
def test_a_damaged_or_absent_file(tmp_path, lora, file):
    if lora:
        pytest.importorskip("peft", reason="LoRA is peft's")
    _, folder = checkpoint(tmp_path, "llama", lora)
    (folder / file).write_bytes((folder / file).read_bytes()[:-100])
    with pytest.raises(ConfigError, match="checkpoint-2"):
        train(start("llama", lora), tmp_path / "run", resume=True)
    (folder / file).unlink()
    with pytest.raises(ConfigError, match="cannot read"):
        train(start("llama", lora), tmp_path / "run", resume=True)
