#!/usr/bin/env bash
# Saved-tensor hooks around a compiled nn.Sequential or nn.Linear are compiled too, and what they may do depends on that.
#
# torch.autograd.graph.saved_tensors_hooks(pack, unpack) calls pack in Python for every tensor that autograd saves. Where the block
# inside is a module of one's own, compiled in place by module.compile(), pack runs as it was written. Where the block is a module of
# torch, dynamo leaves the call of that module to Python and goes on watching the frames beneath it: pack is one of them and is
# compiled itself. It is then called with stand-ins while it is traced, and once the number of rows has changed, so that sizes are
# symbols, tensor.nbytes in it raises TorchRuntimeError, although tensor.shape and tensor.data_ptr() in the same place work.
# Somebody who counts or offloads saved tensors by such a hook, and tests it with a model of his own, sees nothing of it.
# The error names the hook's own line as wrong in "eager", where it runs. torch.compiler.disable around pack is the way out.
#
# Seen with Python 3.11, torch 2.13.0, CPU build, 2026-11-29:
#   a module of one's own: shape 24 tensors; nbytes 24 tensors; data_ptr 24 tensors
#   nn.Sequential: shape 24 tensors; nbytes TorchRuntimeError; data_ptr 24 tensors
#   nn.Linear: shape 6 tensors; nbytes TorchRuntimeError; data_ptr 6 tensors
#   nn.Sequential, the hook left out of compilation: nbytes 24 tensors
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


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)

    def forward(self, x):
        return torch.tanh(self.linear(self.norm(x)))


BLOCKS = {
    "a module of one's own": Own,
    "nn.Sequential": lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh()),
    "nn.Linear": lambda: nn.Linear(16, 16),
}
USES = {
    "shape": lambda t: tuple(t.shape),
    "nbytes": lambda t: t.nbytes,
    "data_ptr": lambda t: t.data_ptr(),
}


def outcome(make, use, around=lambda pack: pack):
    """How many tensors the hook saw in passes of 4, 5 and 6 rows, or the name of the error."""
    torch._dynamo.reset()
    block, seen = make(), []
    block.compile(backend="aot_eager")

    def pack(t):
        seen.append(use(t))
        return t

    hook = around(pack)
    try:
        for rows in (4, 5, 6):
            x = torch.randn(rows, 16, requires_grad=True)
            with torch.autograd.graph.saved_tensors_hooks(hook, lambda t: t):
                y = block(x)
            y.sum().backward()
    except Exception as error:
        return type(error).__name__
    return f"{len(seen)} tensors"


found = {name: {use: outcome(make, USES[use]) for use in USES} for name, make in BLOCKS.items()}
left_out = outcome(BLOCKS["nn.Sequential"], USES["nbytes"], torch.compiler.disable)
for name, each in found.items():
    print(f"{name}: " + "; ".join(f"{use} {what}" for use, what in each.items()))
print(f"nn.Sequential, the hook left out of compilation: nbytes {left_out}")
fails = "TorchRuntimeError"
same = (
    list(found["a module of one's own"].values()) == ["24 tensors"] * 3
    and list(found["nn.Sequential"].values()) == ["24 tensors", fails, "24 tensors"]
    and list(found["nn.Linear"].values()) == ["6 tensors", fails, "6 tensors"]
    and left_out == "24 tensors"
)
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
