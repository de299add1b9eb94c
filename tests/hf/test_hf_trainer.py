"""transformers' Trainer, unmodified, on a converted model: it trains, evaluates, resumes, accumulates, clips
and mixes precision as on any model.
"""

import copy
import warnings

import pytest
import torch
from models import LAYERS, VOCAB, converted, differing, model
from transformers import Trainer, TrainerCallback, TrainingArguments

from revstep import hf

peft = pytest.importorskip("peft")
DROPOUT = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1}


class Rows(torch.utils.data.Dataset):
    """Rows that count up in steps: something to learn in a few updates."""

    def __init__(self, rows=16, time=10):
        start = torch.arange(rows)[:, None]
        self.ids = (start * 5 + torch.arange(time) * 3) % (VOCAB - 3) + 3

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, i):
        return {
            "input_ids": self.ids[i],
            "labels": self.ids[i],
            "attention_mask": torch.ones_like(self.ids[i]),
        }


class Reports(TrainerCallback):
    def __init__(self):
        self.exact = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        report = hf.conversion(model).report
        self.exact.append(report is not None and report.exact)


def start(kind):
    """A converted model in full training (GPT-2 with dropout), or with LoRA around it (Llama)."""
    if kind == "full":
        return converted("GPT2LMHeadModel", **DROPOUT)
    torch.manual_seed(0)
    return peft.get_peft_model(
        converted("Llama"),
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "down_proj"], lora_dropout=0.1),
    )


def trainer(made, out, data=None, **options):
    defaults = {
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 1,
        "save_strategy": "no",
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": False,
        "save_only_model": False,
    }
    args = TrainingArguments(output_dir=str(out), **defaults | options)
    reports = Reports()
    made = Trainer(
        model=made, args=args, train_dataset=data or Rows(), eval_dataset=Rows(4), callbacks=[reports]
    )
    made.reports = reports
    return made


def losses(done):
    return [entry["loss"] for entry in done.state.log_history if "loss" in entry]


def weights(module):
    return {name: p.detach().clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_training_and_evaluation(tmp_path, kind):
    made = start(kind)
    done = trainer(made, tmp_path, max_steps=6, eval_strategy="steps", eval_steps=2)
    done.train()
    evaluated = [entry["eval_loss"] for entry in done.state.log_history if "eval_loss" in entry]
    assert len(evaluated) == 3 and evaluated[-1] < evaluated[0] and losses(done)[-1] < losses(done)[0]
    assert done.reports.exact == [True] * 6, "every step rebuilt every state"
    before, after = weights(start(kind)), weights(made)
    changed = set(differing(before, after))
    assert changed == ({n for n, p in made.named_parameters() if p.requires_grad})


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_the_same_as_on_the_stored_recurrence(tmp_path, kind):
    ends = []
    for keep in (0, LAYERS):
        made = start(kind)
        hf.conversion(made).stack.keep = keep
        trainer(made, tmp_path, max_grad_norm=0.5, weight_decay=0.1).train()
        ends.append(weights(made))
    assert differing(*ends) == []


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_resuming(tmp_path, kind):
    """Two steps, a checkpoint, two more in a fresh model: the bits of four in a row, and a fresh start is
    something else.
    """
    whole = start(kind)
    trainer(whole, tmp_path / "whole", save_strategy="steps", save_steps=2).train()
    again = start(kind)
    trainer(again, tmp_path / "again").train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert differing(weights(whole), weights(again)) == []
    other = start(kind)
    trainer(other, tmp_path / "other", max_steps=2).train()
    assert differing(weights(whole), weights(other)) != []
    if kind == "full":
        loaded = hf.from_pretrained(tmp_path / "whole" / "checkpoint-4")
        assert differing(weights(whole), weights(loaded)) == []


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_accumulated_gradients_are_those_of_the_big_batch(tmp_path, scheme):
    """One SGD step of 4 x 2 rows against one of 8: the same sum in another order.

    Each gradient is a sum over tokens; in another order it is off by at most (number of partial sums) * eps
    times the sum of the magnitudes, here bounded by 80 tokens' worth of the largest gradient: 80 * eps * lr *
    max|g|, and one rounding of the weight itself. A state that falls on the other side of a grid point moves
    by 2^-20, 8 eps, and is one of many.
    """
    before, ends = weights(converted("Llama", scheme)), []
    lr = 1.0
    for batch, times in ((8, 1), (2, 4)):
        made = converted("Llama", scheme)
        options = {
            "gradient_accumulation_steps": times,
            "max_steps": 1,
            "optim": "sgd",
            "learning_rate": lr,
            "lr_scheduler_type": "constant",
        }
        trainer(
            made, tmp_path, Rows(8), per_device_train_batch_size=batch, max_grad_norm=0.0, **options
        ).train()
        ends.append(weights(made))
    eps = torch.finfo(torch.float32).eps
    largest = max(float((ends[0][name] - w).abs().max()) for name, w in before.items())
    for name in before:
        bound = 80 * eps * largest + eps * float(ends[0][name].abs().max())
        assert float((ends[0][name] - ends[1][name]).abs().max()) <= bound, name
    assert largest > 0.01


def test_clipping(tmp_path):
    """The norm that is clipped is the stored recurrence's."""
    norms = []
    for keep in (0, LAYERS):
        made = converted("Llama", convert={"keep": keep})
        done = trainer(made, tmp_path, max_grad_norm=0.01, optim="sgd", max_steps=2)
        done.train()
        norms.append([entry["grad_norm"] for entry in done.state.log_history if "grad_norm" in entry])
    assert norms[0] == norms[1] and len(norms[0]) == 2 and min(norms[0]) > 0.01


@pytest.mark.parametrize("scheme", ["blend", "hamiltonian"])
def test_bf16(tmp_path, scheme):
    ends = []
    for keep in (0, LAYERS):
        made = converted("Llama", scheme, convert={"keep": keep})
        done = trainer(made, tmp_path, bf16=True, max_steps=2)
        done.train()
        ends.append(weights(made))
        assert keep or done.reports.exact == [True, True]
    assert differing(*ends) == [] and all(p.dtype == torch.float32 for p in made.parameters())


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_gradient_checkpointing_is_turned_off(tmp_path, kind):
    with pytest.warns(UserWarning, match=r"turned off for the decoder layers\. gradient_checkpointing=False"):
        one = trainer(start(kind), tmp_path / "one", gradient_checkpointing=True)
        one.train()
    two = trainer(start(kind), tmp_path / "two", gradient_checkpointing=False)
    two.train()
    assert losses(one) == losses(two) and differing(weights(one.model), weights(two.model)) == []
    assert one.reports.exact == [True] * 4


def test_saving_and_deploying(tmp_path):
    made = start("full")
    done = trainer(made, tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done.train()
        done.save_model(str(tmp_path / "model"))
    again, plain = hf.from_pretrained(tmp_path / "model"), model("GPT2LMHeadModel", **DROPOUT)
    assert differing(weights(again), weights(made)) == [] and str(hf.conversion(again)) == str(
        hf.conversion(made)
    )
    reverted = hf.revert(copy.deepcopy(made))
    plain.load_state_dict(reverted.state_dict(), strict=True)
    with torch.no_grad():
        ids = Rows().ids[:2]
        assert torch.equal(reverted.eval()(input_ids=ids).logits, plain(input_ids=ids).logits)
