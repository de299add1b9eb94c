"""Properties of the products in one pass as functions that raise AssertionError (see kernel_checks)."""

import itertools

import kernel_checks as checks
import torch

from revstep import ops

#: One to three factors, with 1, 0, -0, one that is no float32, one that is zero in float32, and products that
#: overflow or are subnormal.
FACTORS = ([0.5, -1.5, 0.75], [1.0, 0.0], [1 / 3], [1e-60, -0.0, 2.0], [3e38, 1e-38, -1.0])
#: The second set of each; equal in places, zero where the first is not and the other way round.
OTHERS = ([-0.5, 1.5, 0.75], [0.0, 1 / 7], [-1 / 3], [1.0, 0.3, 0.0], [0.1, 0.0, 1.0])


def expected(g: torch.Tensor, factors: list[float], last: torch.dtype) -> list[torch.Tensor]:
    """Plain torch products, which is what the operator must give, and zeros for a factor of zero."""
    products = [torch.zeros_like(g) if factor == 0.0 else g * factor for factor in factors]
    return [*products[:-1], products[-1].to(last)]


def check(g: torch.Tensor, last: torch.dtype, on) -> None:
    """One set for all, on each of the launches ``on``: (level, threads)."""
    for factors, (level, threads) in itertools.product(FACTORS, on):
        with checks.launched(level, threads):
            got = ops.scale(g, factors, last)
        _compare(
            got,
            expected(g, factors, last),
            f"{g.dtype} to {last}, {factors}, {tuple(g.shape)}, level {level}, {threads} threads",
        )


def check_rows(g: torch.Tensor, choice: torch.Tensor, last: torch.dtype, on) -> None:
    """Each row the products of its own set."""
    for (first, second), (level, threads) in itertools.product(zip(FACTORS, OTHERS), on):
        with checks.launched(level, threads):
            got = ops.scale(g, first, last, choice, second)
        pairs = zip(expected(g, first, last), expected(g, second, last))
        rows = [
            torch.stack([(b if w else a)[i] for i, w in enumerate(choice.tolist())]) if len(choice) else a
            for a, b in pairs
        ]
        _compare(
            got,
            rows,
            f"rows, {g.dtype} to {last}, {first} or {second}, {tuple(g.shape)}, level {level}, {threads}"
            " threads",
        )


def _compare(got, wanted, where) -> None:
    assert len(got) == len(wanted), f"{len(got)} products, expected {len(wanted)}: {where}"
    for k, (a, b) in enumerate(zip(got, wanted)):
        assert a.is_contiguous() and checks.same(a, b.contiguous()), (
            f"product {k} differs from torch's: {where}"
        )


def battery() -> dict:
    """Name of every property to a function of no arguments, for broken builds."""
    pairs = list(itertools.product(checks.VALUES, checks.VALUES))
    choice = torch.tensor([0, 1, 1, 0, 1], dtype=torch.uint8)
    return {
        "scale": lambda: [check(checks.floats((1061,), value, 1), last, ((-1, 1),)) for value, last in pairs],
        "scale rows": lambda: [
            check_rows(checks.floats((5, 90), value, 2), choice, last, ((-1, 1),)) for value, last in pairs
        ],
    }
