#!/usr/bin/env bash
# Preference training (trl's DPOTrainer) of an adapter that peft starts as PiSSA or OLoRA: the reference model is a
# damaged one, or the trained model is, depending on who wraps the model.
#
# One would guess that how a LoRA is initialized concerns its own two matrices, and that switching it off gives the
# base model, which is what trl uses as the reference. PiSSA and OLoRA move a part of each base weight into the
# adapter, so the model without the adapter is the base model less its largest singular directions. With
# DPOTrainer(peft_config=...) the log probabilities of the reference come from that: the first loss is not log 2, and
# the implicit rewards are noise before anything was trained. If the model is wrapped by get_peft_model before, trl
# copies the adapter as a reference, and adding the copy takes the part out of the base weights once more: now policy
# and reference are the same damaged model. The first loss is log 2 and the rewards are 0, as they should be, while the
# logits have nothing to do any more with those of the model that was to be trained. No warning is given in either
# case; peft has one for loading such an adapter beside another, not for adding one.
#
# What helps: pass ref_model; or the default or "orthogonal" initialization, which leave the function as it was.
#
# Seen with Python 3.11, torch 2.13.0, trl 1.16.0, peft 0.21.2, transformers 5.24.0, CPU, 2026-11-30; first loss (log 2
# is 0.6931), and relative difference of the policy's logits from those of the base model before the first step:
#   default, peft_config: first loss 0.6931, policy off by 0.00
#   orthogonal, peft_config: first loss 0.6931, policy off by 0.00
#   pissa, peft_config: first loss 0.7416, policy off by 0.00
#   olora, peft_config: first loss 0.6257, policy off by 0.00
#   default, wrapped before: first loss 0.6931, policy off by 0.00
#   pissa, wrapped before: first loss 0.6931, policy off by 0.98
#   olora, wrapped before: first loss 0.6931, policy off by 0.79
#   pissa, wrapped before, with ref_model: first loss 0.6931, policy off by 0.00
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 trl==1.16.0 peft==0.21.2 transformers==5.24.0 \
    accelerate==1.15.0 datasets==5.2.0
"$work/venv/bin/python" -W ignore - "$work/out" <<'EOF' 2>"$work/log" || { cat "$work/log" >&2; exit 1; }
import copy
import math
import random
import sys

import datasets
import torch
import transformers
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.trainer_callback import PrinterCallback
from trl import DPOConfig, DPOTrainer

transformers.logging.set_verbosity_error()
datasets.disable_progress_bars()
words = ["<pad>", "<s>", "</s>", "<unk>"] + [f"w{i}" for i in range(50)]
split = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
split.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
tokenizer = PreTrainedTokenizerFast(tokenizer_object=split, **names)
random.seed(0)
keys = ("prompt", "chosen", "rejected")
pairs = [{key: " " + " ".join(random.choices(words[4:], k=6)) for key in keys} for _ in range(8)]
torch.manual_seed(0)
shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
tokens = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
base = LlamaForCausalLM(LlamaConfig(num_key_value_heads=4, initializer_range=0.2, **shape, **tokens)).eval()
probe = torch.randint(4, 54, (2, 9))
right = base(probe).logits.detach()


def started(start, wrapped, reference=False):
    """The first loss, and how far the policy is from the base model before the first step."""
    torch.manual_seed(0)
    model = copy.deepcopy(base)
    config = LoraConfig(r=8, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=start)
    args = DPOConfig(
        sys.argv[1], per_device_train_batch_size=8, max_steps=1, logging_steps=1, report_to=[], save_strategy="no",
        use_cpu=True, bf16=False, disable_tqdm=True,
    )
    trainer = DPOTrainer(
        get_peft_model(model, config) if wrapped else model,
        copy.deepcopy(base) if reference else None,
        args=args,
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=None if wrapped else config,
    )
    trainer.remove_callback(PrinterCallback)
    with torch.no_grad():
        off = float((trainer.model.eval()(probe).logits - right).norm() / right.norm())
    trainer.train()
    return trainer.state.log_history[0]["loss"], off


runs = {
    "default, peft_config": (True, False),
    "orthogonal, peft_config": ("orthogonal", False),
    "pissa, peft_config": ("pissa", False),
    "olora, peft_config": ("olora", False),
    "default, wrapped before": (True, True),
    "pissa, wrapped before": ("pissa", True),
    "olora, wrapped before": ("olora", True),
    "pissa, wrapped before, with ref_model": ("pissa", True, True),
}
found = {name: started(*run) for name, run in runs.items()}
for name, (loss, off) in found.items():
    print(f"{name}: first loss {loss:.4f}, policy off by {off:.2f}")
same = True
for name, (loss, off) in found.items():
    split_weights, wrapped, reference = runs[name][0] in ("pissa", "olora"), runs[name][1], len(runs[name]) > 2
    same = same and (abs(loss - math.log(2)) > 0.01) == (split_weights and not wrapped)
    same = same and (off > 0.1) == (split_weights and wrapped and not reference)
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
