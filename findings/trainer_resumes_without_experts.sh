#!/usr/bin/env bash
# transformers' Trainer, resuming full training of a mixture of experts from its own checkpoint, does not
# restore the experts and routers: they stay what they were before training, and training goes on.
#
# One would guess that resume_from_checkpoint restores what save_steps saved. But since version 5
# save_pretrained writes some classes under the names of their original files (Mixtral: a tensor a expert,
# "block_sparse_moe.experts.0.w1.weight"), while the model in memory holds fused ones
# ("mlp.experts.gate_up_proj"). from_pretrained converts between the two. The Trainer reads a checkpoint with
# load_state_dict(strict=False), which converts nothing: the experts are "missing", what is in the file is
# "unexpected", and a logged warning is all that happens. Attention, norms and the optimizer's moments, also
# those of the experts, are restored, so the loss goes on at a plausible height. A dense Llama resumes bit
# for bit in the same script.
#
# What helps: from_pretrained(checkpoint) into the model before train(resume_from_checkpoint=...); the Trainer
# then leaves these tensors as they are.
#
# Seen with Python 3.11, torch 2.13.0, transformers 5.24.0, accelerate 1.15.0, CPU, 2026-11-29:
#   llama, as resumed: 0 tensors differ from those of the checkpoint
#   mixtral, as resumed: 6 tensors differ, all of mlp.experts or mlp.gate; all 6 are those before training
#   mixtral, loaded by from_pretrained first: 0 tensors differ
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
cd "$work"
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
import transformers

transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64,
}


def fresh(kind):
    torch.manual_seed(0)
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**SIZES, num_local_experts=4))


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, i):
        ids = torch.randint(0, 64, (16,), generator=torch.Generator().manual_seed(i))
        return {"input_ids": ids, "labels": ids}


class AsResumed(transformers.TrainerCallback):
    """Keeps the weights when training begins, and ends it."""

    def on_train_begin(self, args, state, control, model=None, **rest):
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    def on_step_end(self, args, state, control, **rest):
        control.should_training_stop = True


def train(model, out, steps, resume=None, callbacks=()):
    args = transformers.TrainingArguments(
        output_dir=out, max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        report_to="none", disable_tqdm=True, logging_strategy="no", save_strategy="steps", save_steps=4,
    )
    trainer = transformers.Trainer(model=model, args=args, train_dataset=Rows(), callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)


def resumed(kind, first=None):
    """Names of the tensors that are not the checkpoint's, and of those that are what they were before training."""
    out = kind
    model = fresh(kind)
    train(model, out, 4)
    trained = {name: p.detach().clone() for name, p in model.named_parameters()}
    again, before, seen = fresh(kind), dict(fresh(kind).named_parameters()), AsResumed()
    if first is not None:
        again.load_state_dict(type(again).from_pretrained(f"{out}/checkpoint-4").state_dict())
    train(again, out, 8, f"{out}/checkpoint-4", [seen])
    differ = [name for name in trained if not torch.equal(seen.weights[name], trained[name])]
    return differ, [name for name in differ if torch.equal(seen.weights[name], before[name])]


llama, _ = resumed("llama")
print("llama, as resumed:", len(llama), "tensors differ from those of the checkpoint")
mixtral, untrained = resumed("mixtral")
experts = all(".mlp.experts." in name or ".mlp.gate." in name for name in mixtral)
print(f"mixtral, as resumed: {len(mixtral)} tensors differ, {'all' if experts else 'not all'} of mlp.experts or mlp.gate; "
      f"{'all' if len(untrained) == len(mixtral) else 'not all'} {len(untrained)} are those before training")
helped, _ = resumed("mixtral", first=True)
print("mixtral, loaded by from_pretrained first:", len(helped), "tensors differ")
sys.exit(not (not llama and len(mixtral) == 6 and experts and untrained == mixtral and not helped))
EOF
