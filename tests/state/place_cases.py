"""Values out of range in every place, and the words that belong into the messages."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import revstep
from revstep import FixedPoint, Float, ode
from revstep.errors import StateOverflowError

NAN, INF = math.nan, math.inf

#: What has no business in a message from a place, whatever the value was.
FORBIDDEN = {
    "input": ("GradScaler", "loss scale", "block returned", "weights", "layer", "smaller h", "scale="),
    "layer": ("embedding", "padding", "the input itself", ".step", "smaller h", "scale="),
    "primitive": ("GradScaler", "loss", "block", "weights", "stack", "embedding", "smaller h", "scale="),
    "ode": ("GradScaler", "block", "layer", "loss", "weights", "stack", "embedding", "on_nonfinite"),
}


class Adds(nn.Module):
    """A block whose increment is one value in one place, zero elsewhere."""

    def __init__(self, value=0.0, at=(1, 2)):
        super().__init__()
        self.weight, self.value, self.at = nn.Parameter(torch.ones(())), value, at

    def forward(self, x):
        out = 0 * x * self.weight
        out[self.at] = self.value
        return out


def stacked(value, scheme=None, grad=True, fmt=None, at=(1, 2), shape=(3, 4)):
    """The third of four layers adds ``value``."""
    scheme = scheme or revstep.Blend()
    blocks = [Adds(value if k == 2 else 0.0, at) for k in range(4)]
    if scheme.halves == 2:
        blocks = [(Adds(), block) for block in blocks]
    torch.manual_seed(0)  # for a scheme that draws signs
    with torch.set_grad_enabled(grad):
        revstep.ReversibleStack(blocks, scheme, state=fmt or FixedPoint())(torch.zeros(shape))


def given(value, shape=(4, 5), at=(2, 3), pair=False, dtype=torch.float32):
    """A stack is given an input with ``value`` in one place."""
    x = torch.zeros(shape, dtype=dtype)
    x[at] = value
    stack = revstep.ReversibleStack([nn.Identity() for _ in range(2)], revstep.Blend())
    stack((torch.zeros_like(x), x) if pair else x)


def stepped(f=0.0, prev=0.0, cur=0.0, scheme=None, fmt=None, inverse=False):
    """A primitive on tensors of six elements with these values in the fifth."""
    scheme, fmt = scheme or revstep.Leapfrog(), fmt or FixedPoint()
    full = [torch.zeros(2, 3, dtype=torch.float64) for _ in range(3)]
    for x, value in zip(full, (prev, cur, f)):
        x[1, 1] = value
    states = [fmt.encode(x)[1] for x in full[:2]]
    (scheme.inverse if inverse else scheme.step)(*states, full[2], layer=2, state=fmt)


def integrated(field, y0=(1.0, 2.0), scheme="midpoint", loop="python", **options):
    start = y0 if isinstance(y0, tuple) and isinstance(y0[0], np.ndarray) else np.array(y0)
    ode.integrate(field, start, scheme=scheme, h=0.5, steps=100, loop=loop, **options)


def after(value, t0=0.9, component=1):
    """A field that is well until t0 and gives ``value`` for one component after it."""

    def f(t, y):
        out = -0.5 * y
        if t > t0:
            out[component] = value
        return out

    return f


DRIFTS = (lambda t, p: 3 * p, lambda t, q: 0 * q)
GROWS = ode.fields.Linear([[3.0, 0.0], [0.0, 1.0]])

CASES = {
    "input, NaN": (
        "input", lambda: given(NAN),
        "the stack's input | the input itself holds NaN or Inf | in row 2 | (2, 3) | flat index 13 | "
        'zero or drop rows | padding | embedding',
    ),
    "input, -Inf in three dimensions": (
        "input", lambda: given(-INF, (2, 3, 4), (1, 2, 3)),
        'flat index 23 | (1, 2, 3) | in row 1 | zero or drop rows',
    ),
    "input, in a vector": (
        "input", lambda: given(NAN, (5,), (3,)),
        'flat index 3, | zero or drop rows',
    ),
    "input, NaN in a half": (
        "input", lambda: given(NAN, dtype=torch.bfloat16),
        'in row 2 | zero or drop rows',
    ),
    "input, second of a pair": (
        "input", lambda: given(NAN, pair=True),
        "the stack's input, the second tensor of the pair | in row 2 | zero or drop rows",
    ),
    "input, large": (
        "input", lambda: given(5e3),
        'in row 2 | scale the input down | use FixedPoint(bits=32, frac_bits=16)',
    ),
    "input, beyond all formats": (
        "input", lambda: given(1e25),
        'scale the input down | no fixed-point format holds such values',
    ),
    "input, beyond float32's part": (
        "input", lambda: given(1e36),
        'the input itself holds NaN or Inf (below float64 also a finite value above 3e+32',
    ),
    "layer, NaN": (
        "layer", lambda: stacked(NAN),
        'layer 2: | a block returned NaN or Inf | its weights | in row 1 | (1, 2) | loss scale | '
        "on_nonfinite='propagate' lets a GradScaler skip",
    ),
    "layer, half G": (
        "layer", lambda: stacked(INF, revstep.Hamiltonian()),
        'layer 2 (G): | a block returned NaN or Inf',
    ),
    "layer, NaN without gradients": (
        "layer", lambda: stacked(NAN, grad=False),
        'layer 2: | a block returned NaN or Inf | its weights',
    ),
    "layer, large": (
        "layer", lambda: stacked(3e3),
        'layer 2: | the block returned is finite | in row 1 | use FixedPoint(',
    ),
    "layer, large under random rows": (
        "layer", lambda: stacked(5e3, revstep.BDIA()),
        'layer 2: | the block returned is finite | use FixedPoint(',
    ),
    "layer, beyond all formats": (
        "layer", lambda: stacked(1e25),
        "layer 2: | scale the blocks' outputs down: no fixed-point format holds such values",
    ),
    "primitive, NaN": (
        "primitive", lambda: stepped(NAN),
        'leapfrog.step, layer 2: | f holds NaN or Inf | (1, 1) | look at what computed f',
    ),
    "primitive, f large": (
        "primitive", lambda: stepped(3e3),
        'f brings the largest part | 1 f = 3000 | use FixedPoint(',
    ),
    "primitive, cur large": (
        "primitive", lambda: stepped(1.0, 5.0, 1500.0),
        'cur brings the largest part | 2 cur = 3000 | -1 prev = -5 | use FixedPoint(',
    ),
    "primitive, prev large": (
        "primitive", lambda: stepped(300.0, -1900.0, 0.0),
        'prev brings the largest part | -1 prev = 1900 | use FixedPoint(',
    ),
    "primitive, beyond all formats": (
        "primitive", lambda: stepped(1e25),
        'make f smaller: no fixed-point format holds such values',
    ),
    "primitive, inverse": (
        "primitive", lambda: stepped(3e3, inverse=True),
        'leapfrog.inverse, layer 2: | the nxt, cur, f and carry of one step | f brings the largest part | '
        'use FixedPoint(',
    ),
    "primitive, inverse and NaN": (
        "primitive", lambda: stepped(NAN, inverse=True),
        'leapfrog.inverse | f holds NaN or Inf',
    ),
    "ode, the field is NaN": (
        "ode", lambda: integrated(after(NAN)),
        'step 2, t = 1, component (1,) of y | the field returned nan for that component | singularity | '
        'smaller h',
    ),
    "ode, the field is Inf": (
        "ode", lambda: integrated(after(INF, component=0)),
        'component (0,) of y | the field returned inf',
    ),
    "ode, NaN in floats": (
        "ode", lambda: integrated(after(NAN), state=Float(torch.float64)),
        'step 2, t = 1, component (1,) | not finite in Float | the field returned nan | singularity',
    ),
    "ode, growth": (
        "ode", lambda: integrated(GROWS),
        'step 8, t = 4, component (0,) of y | stability region | smaller h | pass scale= | '
        'use FixedPoint(bits=64',
    ),
    "ode, growth, compiled": (
        "ode", lambda: integrated(GROWS, loop="compiled"),
        'step 8, t = 4, component (0,) of y | stability region | smaller h | pass scale= | '
        'use FixedPoint(bits=64',
    ),
    "ode, growth of one system, compiled": (
        "ode", lambda: integrated(GROWS, [[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]], loop="compiled"),
        'component (2, 0) of y | smaller h',
    ),
    "ode, q of a pair": (
        "ode",
        lambda: integrated(DRIFTS, (np.zeros(2), np.array([0.0, 1.0])), "verlet", scale=1.0),
        'component (1,) of q | pass scale=(2.0**',
    ),
    "ode, the start": (
        "ode", lambda: integrated(GROWS, (1.0, 3e12), state=FixedPoint(64), scale=1.0),
        'step 0, t = 0, the start, component (1,) of y | the start does not fit | pass scale=2.0** | '
        'use FixedPoint(bits=64',
    ),
    "ode, beyond all formats": (
        "ode", lambda: integrated(GROWS, (1e70, 0.0), state=FixedPoint(64)),
        'the start does not fit | pass scale=2.0**',
    ),
}  # fmt: skip


def raised(call):
    with pytest.raises(StateOverflowError) as caught, np.errstate(all="ignore"):
        call()
    return caught.value


def violations(message, kind, required):
    """What the message lacks of ``required`` (words with " | " between them), and what it should not say."""
    lacks = [f"lacks {word!r}" for word in required.split(" | ") if word not in message]
    return lacks + [f"says {word!r}" for word in FORBIDDEN[kind] if word in message]
