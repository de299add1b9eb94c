#!/usr/bin/env bash
# Sequences that are packed into one row are kept apart by transformers only where no cache is made: the loss depends
# on use_cache, whose default is True, and so on whether gradient checkpointing is on.
#
# One would guess that use_cache decides what is kept for generation, and gradient checkpointing what is kept for the
# backward pass, and that neither changes a number of the forward pass. DataCollatorWithFlattening joins the examples
# of a batch to one row and marks their beginnings in position_ids. With scaled dot product or eager attention the
# model reads these and masks each sequence from the others, but only if there is no attention mask and no cache. A
# plain call makes a cache, in training mode as well, and then each sequence sees all those before it in its row. With
# gradient checkpointing the cache is turned off, and in transformers' Trainer it is, too: a training loop of one's
# own and the Trainer, or two runs that differ in memory saving alone, have different losses for one batch, and the
# loss of an example depends on what it was packed with. No error, no warning. The guide to packing asks for flash
# attention and does not name the cache.
#
# What helps: model.config.use_cache = False before training, or use_cache=False in each call.
#
# Seen with Python 3.11, torch 2.13.0, transformers 5.24.0, accelerate 1.15.0, CPU, 2026-11-30; two sequences of 10 and
# 14 tokens, largest difference of a logit from those of the sequences on their own:
#   a plain call in training mode: difference 7.5e+00, loss 5.4560
#   use_cache=False: difference 4.8e-06, loss 5.4316
#   gradient checkpointing: difference 4.8e-06, loss 5.4316
#   Trainer without gradient checkpointing: loss 5.4316
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 transformers==5.24.0 accelerate==1.15.0
"$work/venv/bin/python" -W ignore - "$work/out" <<'EOF'
import sys

import torch
import transformers
from transformers import DataCollatorWithFlattening, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

transformers.logging.set_verbosity_error()


def made():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, initializer_range=0.3, **shape)).train()


torch.manual_seed(1)
sequences = [torch.randint(0, 64, (length,)) for length in (10, 14)]
examples = [{"input_ids": ids.tolist()} for ids in sequences]
batch = dict(DataCollatorWithFlattening()(examples))
assert sorted(batch) == ["input_ids", "labels", "position_ids"]
model = made()
apart = torch.cat([model(ids[None]).logits for ids in sequences], 1)


def called(model, **how):
    out = model(**batch, **how)
    return float((out.logits - apart).abs().max()), float(out.loss)


def trained():
    args = TrainingArguments(
        sys.argv[1], per_device_train_batch_size=2, max_steps=1, learning_rate=0.0, logging_steps=1, report_to=[],
        save_strategy="no", use_cpu=True, disable_tqdm=True,
    )
    trainer = Trainer(made(), args, train_dataset=examples, data_collator=DataCollatorWithFlattening())
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


plain, without, trainer = called(model), called(model, use_cache=False), trained()
model.gradient_checkpointing_enable()
saving, ways = called(model), ("a plain call in training mode", "use_cache=False", "gradient checkpointing")
for name, (difference, loss) in zip(ways, (plain, without, saving), strict=True):
    print(f"{name}: difference {difference:.1e}, loss {loss:.4f}")
print(f"Trainer without gradient checkpointing: loss {trainer:.4f}")
same = plain[0] > 1.0 and max(without[0], saving[0]) < 1e-4
same = same and max(abs(trainer - without[1]), abs(saving[1] - without[1])) < 1e-3 < abs(plain[1] - without[1])
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
