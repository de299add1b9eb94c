#!/usr/bin/env bash
# Under autocast a weight is cast once in a forward pass, however often it is used. In the backward pass of a
# checkpointed layer it is cast again, once for every use; and with use_reentrant=True a shared weight then gets
# other bits of gradient than without checkpointing.
#
# One would guess that the casts are shared in both passes, since autocast keeps them "until the context ends".
# But checkpoint enters an autocast context of its own for each recomputation, and what it keeps ends with it. So
# checkpointing pays a cast a use and layer, and the memory of the forward pass's casts (half of the float32
# weights) is held meanwhile. A weight that is used three times has in the plain pass one cast, whose gradient
# is summed in bfloat16 and rounded once more; with use_reentrant=True it has three, summed in float32.
#
# What helps: casting the weights beforehand where they are frozen; use_reentrant=False, which differentiates the
# graph of the forward pass; comparing bits only between runs of the same kind.
#
# Seen with Python 3.11, torch 2.13.0, CPU build, 2026-11-30; four linear layers, each used three times:
#   plain: 4 casts forward, 0 backward
#   use_reentrant=False: 4 casts forward, 12 backward, gradients of the plain pass
#   use_reentrant=True: 4 casts forward, 12 backward, other gradients
#
# Exit status 0: as described. 1: the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" -W ignore - <<'EOF'
import sys

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint


class Casts(TorchDispatchMode):
    def __init__(self, weights):
        super().__init__()
        self.places, self.count = {w.data_ptr() for w in weights}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        cast = function is torch.ops.aten._to_copy.default
        self.count += cast and args[0].data_ptr() in self.places
        return function(*args, **(kwargs or {}))


def run(reentrant=None):
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(4))
    weights = [layer.weight for layer in layers]
    h, casts = torch.randn(8, 32, requires_grad=True), Casts(weights)
    with casts, torch.autocast("cpu", torch.bfloat16):
        for _ in range(3):
            for layer in layers:
                h = h + (layer(h) if reentrant is None else checkpoint(layer, h, use_reentrant=reentrant))
    forward = casts.count
    with casts:
        h.float().sum().backward()
    return forward, casts.count - forward, [w.grad for w in weights]


plain, new, old = run(), run(False), run(True)
equal = [all(map(torch.equal, plain[2], found[2])) for found in (new, old)]
print(f"plain: {plain[0]} casts forward, {plain[1]} backward")
for name, found, same in (("False", new, equal[0]), ("True", old, equal[1])):
    what = "gradients of the plain pass" if same else "other gradients"
    print(f"use_reentrant={name}: {found[0]} casts forward, {found[1]} backward, {what}")
same = (plain[:2], new[:2], old[:2], equal) == ((4, 0), (4, 12), (4, 12), [True, False])
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
