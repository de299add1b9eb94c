#!/usr/bin/env bash
# torch.set_float32_matmul_precision(torch.get_float32_matmul_precision()) changes something: from then on
# torch.backends.fp32_precision no longer reaches matrix products.
#
# The precision of float32 operators is a tree: a backend's operator without a setting of its own takes the
# general one. The old pair of functions knows no "unset": it reads "highest" from a tree that nobody has
# touched and writes "ieee" into the matmul entry of each backend. Code that saves the precision, runs
# something and puts it back, as careful code does around a reference computation or in a test's teardown,
# so pins matrix products to ieee. Whoever then turns TensorFloat32 on with the general setting gets it for
# convolutions and not for matrix products, and the training step is slower than it should be, without a
# word. The entry itself has to be reset to "none".
#
# Seen with Python 3.11, torch 2.13.0, CPU build, 2026-11-28:
#   untouched, general setting tf32: matmul cuda tf32, mkldnn tf32, convolution tf32
#   after a save and restore, general setting tf32: matmul cuda ieee, mkldnn ieee, convolution tf32
#   the entry set to "none", general setting tf32: matmul cuda tf32, mkldnn tf32, convolution tf32
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

backends = torch.backends


def under_tf32():
    backends.fp32_precision = "tf32"
    parts = (backends.cuda.matmul, backends.mkldnn.matmul, backends.cudnn.conv)
    found = tuple(part.fp32_precision for part in parts)
    backends.fp32_precision = "none"
    return found


def say(when, found):
    print(f"{when}, general setting tf32: matmul cuda {found[0]}, mkldnn {found[1]}, convolution {found[2]}")


untouched = under_tf32()
say("untouched", untouched)
torch.set_float32_matmul_precision(torch.get_float32_matmul_precision())
restored = under_tf32()
say("after a save and restore", restored)
backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"
reset = under_tf32()
say('the entry set to "none"', reset)
same = untouched == reset == ("tf32", "tf32", "tf32") and restored == ("ieee", "ieee", "tf32")
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
