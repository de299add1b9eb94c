#!/usr/bin/env bash
# A custom operator of torch that returns a list loses its gradient in every call whose last argument has its default value.
#
# torch.library.register_autograd gives a backward formula to an operator. It returns one gradient for each argument of the
# schema, and None for those that have none. For an operator that returns a tensor this holds in every call, and setup_context is
# given all arguments, defaults filled in. For an operator that returns a list (Tensor[]) setup_context is given all of them too,
# but the gradients are counted against the arguments that the dispatcher passed on, and it drops trailing ones that equal their
# defaults, also when the caller wrote them. The same formula is right for one call and raises in backward for the next.
# A test that gives every argument a value does not show it. Adding an optional argument to an operator of this kind breaks the
# training of everybody who does not use it.
#
# Seen with Python 3.11, torch 2.13.0, CPU build, 2026-11-29:
#   one tensor: with a value gradient 2.0; with None gradient 2.0; left out gradient 2.0
#   a list: with a value gradient 2.0; with None RuntimeError in backward; left out RuntimeError in backward
#   setup_context saw [3, 3, 3] arguments
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

library = torch.library.Library("shown", "DEF")
seen = []


def remember(ctx, inputs, output):
    seen.append(len(inputs))
    ctx.factor = inputs[1]


library.define("one(Tensor x, float factor, Tensor? unused=None) -> Tensor")
library.impl("one", lambda x, factor, unused=None: x * factor, "CPU")
torch.library.register_autograd("shown::one", lambda ctx, g: (g * ctx.factor, None, None), setup_context=remember)

library.define("several(Tensor x, float factor, Tensor? unused=None) -> Tensor[]")
library.impl("several", lambda x, factor, unused=None: [x * factor], "CPU")
torch.library.register_autograd("shown::several", lambda ctx, grads: (grads[0] * ctx.factor, None, None), setup_context=remember)


def outcome(call):
    x = torch.ones((), requires_grad=True)
    try:
        call(x).backward()
    except RuntimeError:
        return "RuntimeError in backward"
    return f"gradient {float(x.grad)}"


def outcomes(operator):
    """With a value for the last argument, with its default, and without it."""
    value = torch.zeros(())
    return [outcome(lambda x: operator(x, 2.0, *last)) for last in ((value,), (None,), ())]


tensor = outcomes(torch.ops.shown.one)
seen.clear()
listed = outcomes(lambda *given: torch.ops.shown.several(*given)[0])
for name, found in (("one tensor", tensor), ("a list", listed)):
    print(f"{name}: with a value {found[0]}; with None {found[1]}; left out {found[2]}")
print(f"setup_context saw {seen} arguments")
fails = "RuntimeError in backward"
same = tensor == ["gradient 2.0"] * 3 and listed == ["gradient 2.0", fails, fails] and seen == [3, 3, 3]
print("as described" if same else "the behaviour has changed")
sys.exit(0 if same else 1)
EOF
