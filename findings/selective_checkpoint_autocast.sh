#!/usr/bin/env bash
# Selective activation checkpointing that saves casts, under autocast, with backward() inside the autocast
# region: a weight silently gets the gradient of another one.
#
# Under autocast each weight is cast to bfloat16 once and the cast is kept in a cache until the outermost
# region ends. A region that is still open in the backward pass therefore dispatches fewer casts when a
# layer is computed again: those of the weights are in the cache already. torch's selective checkpointing
# hands out what it saved by *how often* an operator was called, first call to first call. The first cast of
# the recomputation is then that of an activation, and it is handed the saved cast of a weight. Where both
# have one shape and dtype (a square layer, a batch of its size) no check sees it; elsewhere CheckpointError
# says that shapes differ, which does not point to the cause either. One would guess that a policy "save the
# casts" changes memory and time, never the gradient.
#
# What helps: call backward() after the autocast region, as torch's guide says, or leave casts out of the
# policy.
#
# Seen with Python 3.11, torch 2.13.0, CPU, 2026-11-28; relative error of each gradient (input, first,
# second weight):
#   square layer, backward inside autocast: 0.00 0.00 1.06
#   square layer, backward after autocast: 0.00 0.00 0.00
#   wide layer, backward inside autocast: CheckpointError
#   square layer, backward inside autocast, casts recomputed: 0.00 0.00 0.00
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import functools
import sys

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointError, CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

CAST, PRODUCT = torch.ops.aten._to_copy.default, torch.ops.aten.mm.default


class Layer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b = nn.Linear(8, width, bias=False), nn.Linear(width, 8, bias=False)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)).float()).float()


def gradients(width, saved, inside):
    def policy(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op is saved else CheckpointPolicy.PREFER_RECOMPUTE

    torch.manual_seed(0)
    layer, x = Layer(width), torch.randn(8, 8, requires_grad=True)
    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    with torch.autocast("cpu", torch.bfloat16):
        y = checkpoint(layer, x, use_reentrant=False, context_fn=contexts) if saved else layer(x)
        loss = y.square().sum()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    return [x.grad, layer.a.weight.grad, layer.b.weight.grad]


def errors(width, saved, inside):
    right, found = gradients(width, None, inside), gradients(width, saved, inside)
    return [float((a - b).norm() / a.norm()) for a, b in zip(right, found)]


wrong, after, without = errors(8, CAST, True), errors(8, CAST, False), errors(8, PRODUCT, True)
try:
    wide = " ".join(f"{e:.2f}" for e in errors(16, CAST, True))
except CheckpointError as error:
    wide = type(error).__name__
print("square layer, backward inside autocast:", *(f"{e:.2f}" for e in wrong))
print("square layer, backward after autocast:", *(f"{e:.2f}" for e in after))
print("wide layer, backward inside autocast:", wide)
print("square layer, backward inside autocast, casts recomputed:", *(f"{e:.2f}" for e in without))
same = wrong[2] > 0.5 and max(after) < 1e-6 and wide == "CheckpointError" and max(without) < 1e-6
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
