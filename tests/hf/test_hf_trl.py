"""Converted models under trl's trainers, with trl's defaults; skipped where trl is not installed."""

import copy

import pytest
import torch
import transformers
from hub import make_tokenizer
from models import LAYERS, differing

from revstep import hf

trl = pytest.importorskip("trl", reason="trl is not installed")
datasets = pytest.importorskip("datasets", reason="datasets is not installed")
peft = pytest.importorskip("peft")

LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"]}
#: Name of the trainer without ``Trainer``, its rows, and arguments that make a run small.
TRAINERS = {
    "SFT": ([{"text": f"def f(x): return x + {i}"} for i in range(8)], {}, {}),
    "SFT, padded together": (
        [{"text": f"def f(x): return x + {i}"} for i in range(8)],
        {"packing": True, "max_length": 32},
        {},
    ),
    "DPO": (
        [{"prompt": "def f(x):", "chosen": f" return {i}", "rejected": " pass"} for i in range(8)],
        {},
        {},
    ),
    "KTO": (
        [{"prompt": "def f(x):", "completion": f" return {i}", "label": bool(i % 2)} for i in range(8)],
        {},
        {},
    ),
    "GRPO": (
        [{"prompt": f"def f(x): # {i}"} for i in range(8)],
        {"num_generations": 2, "max_completion_length": 6, "learning_rate": 1e-3},
        {"reward_funcs": lambda completions, **_: [float(len(text)) for text in completions]},
    ),
}
OURS = {
    "max_steps": 2,
    "per_device_train_batch_size": 2,
    "report_to": "none",
    "use_cpu": True,
    "save_strategy": "no",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama and its tokenizer; trl reads a reference model from where the model came from."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        max_position_embeddings=64,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("trl")
    transformers.LlamaForCausalLM(config).save_pretrained(made)
    tokenizer.save_pretrained(made)
    return made


def converted(folder, keep=0):
    made = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return hf.convert(made, "blend:c=0.25", state="fixed32:20", keep=keep, say=None)


def trainer(name, model, out, tokenizer, lora=False, **options):
    rows, arguments, more = TRAINERS[name]
    kind = name.split(",")[0]
    args = getattr(trl, f"{kind}Config")(output_dir=str(out), **OURS | arguments | options)
    more = more | ({"peft_config": peft.LoraConfig(**LORA, task_type="CAUSAL_LM")} if lora else {})
    data = datasets.Dataset.from_list(rows)
    made = getattr(trl, f"{kind}Trainer")
    return made(model=model, args=args, train_dataset=data, processing_class=tokenizer, **more)


@pytest.fixture
def tokenizer(folder):
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
@pytest.mark.parametrize("name", TRAINERS)
def test_defaults(folder, tokenizer, tmp_path, name, lora):
    """With every default of trl: what is rebuilt is exact, and the weights are the stored recurrence's."""
    ends = []
    for keep in (0, LAYERS):
        one = trainer(name, converted(folder, keep), tmp_path / str(keep), tokenizer, lora)
        assert one.args.gradient_checkpointing, "trl's default, which this test is about"
        before = copy.deepcopy(one.model.state_dict())
        with pytest.warns(UserWarning, match="turned off for the decoder layers"):
            one.train()
        made = hf.conversion(one.model)
        assert made is not None and (keep or made.report.exact)
        assert differing(before, one.model.state_dict()) != [], "it has trained"
        ends.append(one.model.state_dict())
    assert differing(*ends) == []


@pytest.mark.parametrize("name", ["DPO", "KTO"])
def test_the_reference_is_the_plain_model_unless_it_is_given(folder, tokenizer, tmp_path, name):
    """A copy of the converted model as reference makes every reward 0 at first, as between plain models."""

    def rewards(reference):
        model = converted(folder)
        options = {"ref_model": copy.deepcopy(model)} if reference else {}
        rows, arguments, _ = TRAINERS[name]
        config = getattr(trl, f"{name}Config")
        args = config(output_dir=str(tmp_path), logging_steps=1, **OURS | arguments)
        data = datasets.Dataset.from_list(rows)
        made = getattr(trl, f"{name}Trainer")
        one = made(model=model, args=args, train_dataset=data, processing_class=tokenizer, **options)
        one.train()
        first = one.state.log_history[0]
        return [first[key] for key in ("rewards/chosen", "rewards/rejected") if key in first]

    assert all(value == 0.0 for value in rewards(True)) and any(value != 0.0 for value in rewards(False))


def test_a_deployed_model_is_the_plain_one(folder, tokenizer, tmp_path):
    one = trainer("SFT", converted(folder), tmp_path, tokenizer, lora=True)
    one.train()
    made = hf.revert(one.model.merge_and_unload())
    made.save_pretrained(tmp_path / "plain")
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(plain) is type(made) and hf.conversion(plain) is None
    assert differing(plain.state_dict(), made.state_dict()) == []
