#!/usr/bin/env bash
# A learning rate that is given to an optimizer as a tensor is one tensor for all its groups: LambdaLR with a function
# a group trains all groups at the rate of the last one.
#
# One would guess that lr=torch.tensor(0.1), which a compiled optimizer step needs to see a new rate without being
# compiled again, does what lr=0.1 does. The default is put into each group that has no rate of its own, and that is
# the same object. Schedulers write into a tensor in place, so what LambdaLR sets for one group is set for all. A group
# whose function is 0, because it is to stay frozen at first, is trained at full rate; or nothing is trained, if it
# comes last. get_last_lr agrees with it, the caller's tensor is changed too, and an optimizer that was made from that
# tensor before follows. Schedulers that treat all groups alike give the same curve for a number and for a tensor, so
# a change from one to the other seems safe.
#
# What helps: a tensor a group, {"params": ..., "lr": torch.tensor(0.1)}.
#
# Seen with Python 3.11, torch 2.13.0, CPU, 2026-11-30; two groups, the functions 0 and 1, three steps with gradient 1
# from the weights 1 and 1:
#   lr=0.1: rates 0.0 and 0.1, weights 1.0 and 0.7
#   lr=torch.tensor(0.1): rates 0.1 and 0.1, weights 0.7 and 0.7
#   the functions 1 and 0, lr=torch.tensor(0.1): rates 0.0 and 0.0, weights 1.0 and 1.0
#   a tensor a group: rates 0.0 and 0.1, weights 1.0 and 0.7
#   another optimizer, made from the same tensor: its rate went from 0.1 to 0.0
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
from torch.optim.lr_scheduler import LambdaLR


def trained(default, functions=(0.0, 1.0), own=None):
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in functions]
    groups = [{"params": [w], **({} if own is None else {"lr": torch.tensor(own)})} for w in weights]
    optimizer = torch.optim.SGD(groups, lr=default)
    scheduler = LambdaLR(optimizer, [lambda epoch, factor=factor: factor for factor in functions])
    for _ in range(3):
        for w in weights:
            w.grad = torch.ones(1)
        optimizer.step()
        scheduler.step()
    return [round(float(rate), 6) for rate in scheduler.get_last_lr()] + [round(float(w.detach()), 6) for w in weights]


shared = torch.tensor(0.1)
other = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=shared)
before = round(float(other.param_groups[0]["lr"]), 6)
found = {
    "lr=0.1": trained(0.1),
    "lr=torch.tensor(0.1)": trained(torch.tensor(0.1)),
    "the functions 1 and 0, lr=torch.tensor(0.1)": trained(shared, (1.0, 0.0)),
    "a tensor a group": trained(0.1, own=0.1),
}
for name, (first, second, a, b) in found.items():
    print(f"{name}: rates {first} and {second}, weights {a} and {b}")
after = round(float(other.param_groups[0]["lr"]), 6)
print(f"another optimizer, made from the same tensor: its rate went from {before} to {after}")
wanted = [[0.0, 0.1, 1.0, 0.7], [0.1, 0.1, 0.7, 0.7], [0.0, 0.0, 1.0, 1.0], [0.0, 0.1, 1.0, 0.7]]
same = list(found.values()) == wanted and (before, after) == (0.1, 0.0)
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
