#!/usr/bin/env bash
# A parameter that is frozen after the forward pass and before backward() gets no gradient, although it was
# trained in the graph that is differentiated; and peft's set_adapter() freezes parameters.
#
# One would guess that requires_grad matters when the graph is recorded, and that the graph then computes
# what it was recorded for. But the node that adds a gradient to a leaf asks the leaf again: requires_grad
# is False by then, and the gradient, which has been computed, is thrown away. No error, no warning, and
# .grad stays None, which optimizers skip. A step that calls set_adapter("a"), then set_adapter("b"), adds
# both losses and calls backward() once trains only "b". Freezing and thawing again before backward() loses
# nothing, so the order of calls decides.
#
# What helps: call backward() before the next set_adapter(), or set requires_grad again for all that is to
# be trained.
#
# Seen with Python 3.11, torch 2.13.0, peft 0.21.2, transformers 5.24.0, accelerate 1.15.0, CPU, 2026-11-28:
#   torch: frozen before backward: weight None, bias tensor([2.])
#   torch: frozen and thawed before backward: weight tensor([[2., 2., 2.]])
#   peft, one backward for both losses: gradients of adapter a 0 of 2, of adapter b 2 of 2
#   peft, one backward a loss: gradients of adapter a 2 of 2, of adapter b 2 of 2
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 peft==0.21.2 transformers==5.24.0 accelerate==1.15.0
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from peft import LoraConfig, get_peft_model
from torch import nn


def linear(thawed):
    layer = nn.Linear(3, 1)
    y = layer(torch.ones(2, 3)).sum()
    layer.weight.requires_grad_(False)
    if thawed:
        layer.weight.requires_grad_(True)
    y.backward()
    return layer


def adapters(one_backward):
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["0"])
    model = get_peft_model(nn.Sequential(nn.Linear(4, 4)), config, adapter_name="a")
    model.add_adapter("b", config)
    x, total = torch.randn(3, 4), 0.0
    for adapter in ("a", "b"):
        model.set_adapter(adapter)
        loss = model(x).square().sum()
        if one_backward:
            total = total + loss
        else:
            loss.backward()
    if one_backward:
        total.backward()
    weights = [(name, w) for name, w in model.named_parameters() if "lora_" in name]
    return [sum(w.grad is not None for name, w in weights if f".{adapter}." in name) for adapter in ("a", "b")]


frozen, thawed = linear(False), linear(True)
print(f"torch: frozen before backward: weight {frozen.weight.grad}, bias {frozen.bias.grad}")
print(f"torch: frozen and thawed before backward: weight {thawed.weight.grad}")
together, apart = adapters(True), adapters(False)
for what, found in (("for both losses", together), ("a loss", apart)):
    print(f"peft, one backward {what}: gradients of adapter a {found[0]} of 2, of adapter b {found[1]} of 2")
same = frozen.weight.grad is None and frozen.bias.grad is not None and thawed.weight.grad is not None
same = same and together == [0, 2] and apart == [2, 2]
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
