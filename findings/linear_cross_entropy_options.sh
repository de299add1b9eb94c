#!/usr/bin/env bash
# torch.nn.functional.linear_cross_entropy gives other gradients with options= than without: second derivatives lose
# the head's part, and rows without a target make every gradient NaN.
#
# One would guess that options=LinearCrossEntropyOptions(...) only says in what pieces the logits are made. It also
# changes how the gradient comes about: it is computed with the loss, in the forward pass, and is a constant then.
# With create_graph=True nothing is refused. Where the rows come out of a network, as they always do, the second
# derivative has the network's part and silently lacks the one of the loss: here a Hessian-vector product that is off
# by as much as its own size. And a batch whose targets are all ignored has the loss NaN either way, but gradients of
# zero without options and of NaN with them, so one such micro-batch spoils an accumulated step.
#
# What helps: no options where second derivatives are wanted (gradient penalties, Hessian-vector products, AdaHessian);
# reduction="sum", divided by max(1, number of targets), where a micro-batch may have none.
#
# Seen with torch 2.13.0, Python 3.11, x86-64 Linux, 2026-11-30:
#   first derivatives differ by 0.0000 of their size, second ones by 1.0
#   all targets ignored: loss nan, gradients of zero without options, of nan with them
#
# Exit status 0: as described. 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/pip" install -q torch==2.13.0 numpy==2.4.6
"$work/venv/bin/python" - <<'EOF'
import sys

import torch
import torch.nn.functional as F
from torch import nn

CHUNKS = nn.LinearCrossEntropyOptions(batch_chunk_size=4)


def network():
    torch.manual_seed(0)
    return nn.Linear(8, 8).double(), nn.Linear(8, 16, bias=False).double()


def loss(body, head, targets, options):
    x = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return F.linear_cross_entropy(body(x).tanh(), head.weight, targets, options=options)


def derivatives(options):
    body, head = network()
    weights = [*body.parameters(), *head.parameters()]
    first = torch.autograd.grad(loss(body, head, torch.arange(12), options), weights, create_graph=True)
    product = sum((g * torch.cos(torch.arange(g.numel())).view_as(g)).sum() for g in first)
    second = torch.autograd.grad(product, weights, allow_unused=True, materialize_grads=True)
    return [torch.cat([g.detach().flatten() for g in found]) for found in (first, second)]


def ignored(options):
    body, head = network()
    value = loss(body, head, torch.full((12,), -100), options)
    value.backward()
    return float(value), head.weight.grad


(first, second), (first_in_chunks, second_in_chunks) = derivatives(None), derivatives(CHUNKS)
apart = [float((a - b).norm() / a.norm()) for a, b in ((first, first_in_chunks), (second, second_in_chunks))]
print(f"first derivatives differ by {apart[0]:.4f} of their size, second ones by {apart[1]:.1f}")
(value, zero), (same_value, nan) = ignored(None), ignored(CHUNKS)
kinds = ["zero" if not g.any() else "nan" if g.isnan().all() else "numbers" for g in (zero, nan)]
print(f"all targets ignored: loss {value}, gradients of {kinds[0]} without options, of {kinds[1]} with them")
same = apart[0] < 1e-9 and apart[1] > 0.1 and value != value and same_value != same_value and kinds == ["zero", "nan"]
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
