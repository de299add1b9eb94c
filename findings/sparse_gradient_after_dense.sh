#!/usr/bin/env bash
# Autograd adds a sparse gradient to a dense one in place if the sparse one came first, and in a new tensor if it came last.
#
# torch.nn.Embedding(sparse=True) is meant to save memory: the gradient of its matrix holds the rows that were read. Where the
# matrix is used twice, as embedding and as head of a language model, the head's dense gradient is there first in every backward
# pass, since the embedding is what a model begins with. Autograd adds two gradients of one tensor in place where nobody else
# holds the first. But that is so for dense + dense and for sparse + dense; for dense + sparse it makes a third tensor, because a
# sparse tensor is counted among those with rules of their own. So the peak with the sparse embedding is that with the dense one:
# two matrices of the size of the vocabulary. In the other order, which no model has, there is one.
#
# Seen with Python 3.11, torch 2.13.0, CPU build, 2026-11-29 (is the sum in the memory of the dense gradient?):
#   dense, then dense: in place
#   sparse, then dense: in place
#   dense, then sparse: a new tensor
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
import torch.nn.functional as F

made = []


class Head(torch.autograd.Function):
    """h, W -> sum(h), with a gradient of W that is dense and held by nobody here."""

    @staticmethod
    def forward(ctx, h, w):
        ctx.shapes = h.shape, w.shape
        return h.sum()

    @staticmethod
    def backward(ctx, g):
        dense = torch.ones(ctx.shapes[1])
        made.append(dense.data_ptr())
        return g.expand(ctx.shapes[0]), dense


def where(first, second):
    """Whose backward pass comes first is whose forward pass comes last."""
    made.clear()
    weight = torch.nn.Parameter(torch.zeros(2000, 64))
    ids = torch.arange(10)
    if second == "embedding":  # as in a model: the head reads what was looked up
        loss = Head.apply(F.embedding(ids, weight, sparse=first == "dense, sparse"), weight)
    else:
        loss = Head.apply(torch.zeros(10, 64, requires_grad=True), weight)
        loss = loss + F.embedding(ids, weight, sparse=True).sum()
    loss.backward()
    return "in place" if weight.grad.data_ptr() == made[0] else "a new tensor"


found = {
    "dense, then dense": where("dense, dense", "embedding"),
    "sparse, then dense": where("sparse, dense", "head"),
    "dense, then sparse": where("dense, sparse", "embedding"),
}
for order, what in found.items():
    print(f"{order}: {what}")
sys.exit(found != {"dense, then dense": "in place", "sparse, then dense": "in place", "dense, then sparse": "a new tensor"})
EOF
