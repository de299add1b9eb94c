"""``ops.scale`` beside its specification in torch, which devices without kernels run: the same bits."""

import itertools

import pytest
import torch

from revstep import ops
from revstep.ops import reference

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
FACTORS = ([0.5], [1.0, -0.75], [0.0, 1.25, 3.0], [1.0, 0.0])


def gradients(dtype):
    """Ordinary numbers, the largest and smallest, zeros of both signs, and what is none, in rows."""
    made = torch.Generator().manual_seed(0)
    top, least = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    rare = [0.0, -0.0, top, -top, least, least / 2, float("inf"), -float("inf"), float("nan")]
    g = torch.randn(5, 37, generator=made, dtype=torch.float64).to(dtype)
    g[1, : len(rare)] = torch.tensor(rare, dtype=torch.float64).to(dtype)
    return g


def same(a, b):
    return all(
        x.dtype == y.dtype and x.is_contiguous() and torch.equal(x.isnan(), y.isnan())
        and torch.equal(x.nan_to_num(0.0).view(torch.uint8), y.nan_to_num(0.0).view(torch.uint8))
        for x, y in zip(a, b, strict=True)
    )  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernel_has_the_bits_of_the_reference(dtype):
    g = gradients(dtype)
    for factors, last, layout in itertools.product(FACTORS, DTYPES, (g, g.t(), g[:, ::2])):
        if dtype == torch.float64 and last != dtype:
            continue  # gradients of float64 states stay float64
        assert same(ops.scale(layout, factors, last), reference.scale(layout, factors, last)), (factors, last)


@pytest.mark.parametrize("dtype", DTYPES)
def test_and_by_row(dtype):
    g, choice = gradients(dtype), torch.tensor([0, 1, 1, 0, 1], dtype=torch.uint8)
    for factors in FACTORS:
        second = [0.25 - factor for factor in factors]
        assert same(
            ops.scale(g, factors, dtype, choice, second), reference.scale(g, factors, dtype, choice, second)
        )


def test_nothing_times_zero_is_zero():
    """Also of gradients that are no numbers: what a layer does not take, it does not pass on."""
    (out,) = reference.scale(torch.tensor([float("nan"), float("inf"), -1.0]), [0.0], torch.float32)
    assert torch.equal(out, torch.zeros(3))
