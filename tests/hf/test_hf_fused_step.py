"""Fine-tuning with the optimiser inside backward: the weights of ordinary steps, also stopped and gone on
with.
"""

import pytest
import torch

from revstep import _fused_step, hf
from revstep.errors import ConfigError

transformers = pytest.importorskip("transformers", reason="trains models of transformers")
pytest.importorskip("accelerate", reason="transformers' Trainer needs it")

SIZES = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "tie_word_embeddings": True,
}
SHORT = "--data TEXT --context 32 --batch 2 --val-fraction 0.2 --eval-batches 1 --warmup 0 --device cpu"


def start(scheme="blend:c=0.0625", lora=0):
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    if scheme:
        hf.convert(model, scheme, say=None)
    return hf.add_lora(model, lora, targets="all-linear") if lora else model


def train(model, out, **changes):
    how = {"out": str(out), "steps": 4, "batch": 2, "lr": 1e-2, "clip": 0.0, "device": "cpu", **changes}
    rows = torch.randint(0, 64, (8, 8), generator=torch.Generator().manual_seed(1))
    tuned = hf.finetune(model, rows, hf.FineTune(**how), say=None)
    return tuned, {name: p.detach().clone() for name, p in model.named_parameters()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "scheme, more",
    [
        ("blend:c=0.0625", {}),
        ("hamiltonian", {}),
        ("", {"checkpointing": True}),
        ("blend:c=0.0625", {"lora": 2}),
        ("blend:c=0.0625", {"dtype": "bfloat16"}),
        ("blend:c=0.0625", {"weight_decay": 0.1, "schedule": "linear", "warmup": 2}),
    ],
)
def test_the_weights_are_those_of_ordinary_steps(tmp_path, scheme, more):
    lora = more.pop("lora", 0) if "lora" in more else 0
    ordinary, wanted = train(start(scheme, lora), tmp_path / "a", **more)
    fused, found = train(start(scheme, lora), tmp_path / "b", fused_step=True, **more)
    assert fused.losses == ordinary.losses and same(wanted, found)
    assert not same(found, {name: p for name, p in start(scheme, lora).named_parameters()})
    assert fused.states == fused.matched and (fused.states > 0) == bool(scheme)


def test_no_gradient_is_left_and_none_lasts(tmp_path, monkeypatch):
    held = []
    optimise = _fused_step.FusedStep._optimise

    def watching(self, p, group):
        held.append(sum(q.grad is not None for g in self.optimizer.param_groups for q in g["params"]))
        optimise(self, p, group)

    monkeypatch.setattr(_fused_step.FusedStep, "_optimise", watching)
    model = start()
    train(model, tmp_path, fused_step=True)
    assert held and set(held) == {1}  # its own
    model(
        input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)
    ).loss.backward()
    assert all(p.grad is not None for p in model.parameters())  # afterwards steps are ordinary again


def test_ordinary_steps_again_after_an_error(tmp_path):
    model = start()
    with pytest.raises(RuntimeError, match="asked to fail"):
        hf.finetune(
            model,
            torch.ones(4, 8, dtype=torch.long),
            hf.FineTune(out=str(tmp_path), steps=2, batch=2, device="cpu", fused_step=True),
            stop=lambda: (_ for _ in ()).throw(RuntimeError("asked to fail")),
            say=None,
        )
    model.zero_grad()
    model(
        input_ids=torch.ones(1, 4, dtype=torch.long), labels=torch.ones(1, 4, dtype=torch.long)
    ).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_stopped_and_gone_on_with(tmp_path):
    """With clipping, by the norm of the step before, which the checkpoint has."""
    more = {"fused_step": True, "clip": 0.05, "save_every": 2}
    _, whole = train(start(), tmp_path / "whole", **more)
    _, free = train(start(), tmp_path / "free", **{**more, "clip": 0.0})
    assert not same(whole, free)
    for path in sorted((tmp_path / "whole" / "checkpoint-4").iterdir()):
        path.unlink()
    (tmp_path / "whole" / "checkpoint-4").rmdir()
    model = start()
    _, again = train(model, tmp_path / "whole", resume=True, **more)
    assert same(whole, again)


@pytest.mark.parametrize(
    "more, words",
    [
        ({"accumulate": 2}, "fused_step and accumulate > 1: every backward pass would be an optimiser step"),
        ({"dtype": "float16"}, "fused_step and dtype float16: gradients would be used with the loss's scale"),
    ],
)
def test_what_does_not_go_with_it(more, words):
    with pytest.raises(ConfigError, match=words):
        hf.FineTune(out="x", fused_step=True, **more)


def test_the_command(revstep, tmp_path):
    """``--fused-step`` gives the model of the ordinary command."""
    options = f"--full --scheme bdia --steps 3 --clip 0 {SHORT}"
    assert revstep(f"finetune MODEL --out OUT/a {options}")[0] == 0
    code, said, _ = revstep(f"finetune MODEL --out OUT/b --fused-step {options}")
    assert code == 0 and "states exact" in said
    files = [next((tmp_path / name).glob("*.safetensors")) for name in ("a", "b")]
    safetensors = pytest.importorskip("safetensors.torch")
    assert same(*(safetensors.load_file(path) for path in files))
    code, _, problem = revstep(f"finetune MODEL --out OUT/c --fused-step --accumulate 2 {options}")
    assert code == 2 and "fused_step and accumulate > 1" in problem and not (tmp_path / "c").exists()


OPTIONAL = {"lomo": "lomo_optim", "galore_adamw_layerwise": "galore_torch"}


@pytest.mark.parametrize("name", OPTIONAL)
def test_layer_wise_optimisers_of_transformers_train_a_converted_model(tmp_path, name):
    """They step inside backward by hooks of their own. The states are exact, and the weights are those of the
    same model with all layers stored.
    """
    pytest.importorskip(OPTIONAL[name], reason="an optimiser of transformers that is a package of its own")
    made = []
    for keep in (0, 3):
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
        hf.convert(model, "blend:c=0.0625", keep=keep, say=None)
        rows = torch.randint(0, 64, (8, 8), generator=torch.Generator().manual_seed(1))
        arguments = transformers.TrainingArguments(
            str(tmp_path / str(keep)), max_steps=2, per_device_train_batch_size=2, optim=name, use_cpu=True,
            optim_target_modules=["mlp", "attn"], report_to="none", disable_tqdm=True, learning_rate=1e-2,
        )  # fmt: skip
        data = [{"input_ids": row, "labels": row} for row in rows]
        transformers.Trainer(model, arguments, train_dataset=data).train()
        if keep == 0:
            assert hf.conversion(model).report.exact
        made.append({n: p.detach().clone() for n, p in model.named_parameters()})
    assert same(*made)
