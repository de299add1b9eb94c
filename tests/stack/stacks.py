"""Stacks that the tests of this folder share."""

from __future__ import annotations

import contextlib
import warnings

import torch

import revstep
from revstep.schemes import available
from revstep_lab.verify import example_blocks, example_input

SCHEMES = list(available())
FORMATS = {
    "fixed32": revstep.FixedPoint(32),
    "fixed64": revstep.FixedPoint(64),
    "float32": revstep.Float(torch.float32),
    "float64": revstep.Float(torch.float64),
}
EXACT = ["fixed32", "fixed64"]


def scheme(name: str, **options):
    """The scheme with options that suit example blocks; signs drawn per row are the same ones in
    every pass.
    """
    return available()[name](**({"leapfrog": {"h": 0.5}, "bdia": {"seed": 1}}.get(name, {}) | options))


def stack(
    name="blend",
    layers=5,
    state="fixed32",
    *,
    width=32,
    dropout=0.1,
    scale=4.0,
    dtype=torch.float32,
    blocks=None,
    **options,
):
    """A stack of example blocks (same weights for the same arguments, whatever the scheme)."""
    blocks = (
        example_blocks(layers, width=width, dropout=dropout, scale=scale, dtype=dtype)
        if blocks is None
        else blocks
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", revstep.AmplificationWarning)
        return revstep.ReversibleStack(
            blocks,
            name if isinstance(name, revstep.schemes.Scheme) else scheme(name),
            state=FORMATS.get(state, state),
            **options,
        )


def batch(dtype=torch.float32, width=32, grad=True):
    return example_input(width, dtype=dtype).requires_grad_(grad)


def bf16():
    return torch.autocast("cpu", dtype=torch.bfloat16)


def run(module, x, *args, seed=3, context=contextlib.nullcontext, loss=lambda y: y.square().sum(), **kwargs):
    """One training pass: output, gradients of the input and of all parameters (None where there is none), and
    the next random number.
    """
    torch.manual_seed(seed)
    for t in (x, *module.parameters()):
        t.grad = None
    with context():
        y = module(x, *args, **kwargs)
    value = loss(y)
    value.backward()
    return [value.detach(), x.grad, *(p.grad for p in module.parameters()), torch.rand(1)]


def same(a, b):
    """Bit equality of two lists of tensors and Nones; NaN equals nothing."""
    return len(a) == len(b) and all(
        (s is None) == (t is None) and (s is None or torch.equal(s, t)) for s, t in zip(a, b)
    )
