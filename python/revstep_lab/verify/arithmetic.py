"""The step kernels alone: compiled against the pure-torch reference, and step against inverse, on hard values."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from revstep import ops
from revstep.ops import reference
from revstep.schemes import Scheme
from revstep.state import StateFormat
from revstep.verify.result import Result

_LENGTH = 1061  # odd, not a multiple of 32: tails are exercised


def hard_values(dtype: torch.dtype, scale: float, seed: int) -> Tensor:
    """Normal, tiny, subnormal, signed zero and tie values (``_LENGTH``,) of a float dtype, none above ``8 scale``."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(_LENGTH, generator=g, dtype=torch.float64).clamp(-8, 8) * scale
    x[:7] = torch.tensor([0.0, -0.0, 5e-324, 1e-40, -1e-45, 2.0**-21, -1.5 * 2.0**-20], dtype=torch.float64)
    x[7:200] *= 2.0 ** torch.randint(-30, 0, (193,), generator=g)
    return x.to(dtype)


def _operands(scheme: Scheme, fmt: StateFormat, value: torch.dtype, layers: int) -> Iterator[tuple]:
    for layer in range(layers):
        scale = min(fmt.limit, 2000.0) / 100
        prev, cur = (fmt.encode(hard_values(torch.float64, scale, 3 * layer + i))[1] for i in (0, 1))
        yield prev, cur, hard_values(value, scale, 3 * layer + 2), scheme.coefficients(layer)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def agreement(scheme: Scheme, fmt: StateFormat, value: torch.dtype, layers: int = 4) -> Result:
    """Compiled step and inverse give the reference's bits: state, float view, carry, statistics."""
    wrong = 0
    for prev, cur, f, c in _operands(scheme, fmt, value, layers):
        ours = ops.step(prev, cur, f, *c, fmt.frac_bits, value)
        theirs = reference.step(prev, cur, f, *c, fmt.frac_bits, value)
        nxt, carry = theirs[1], theirs[2]
        back = ops.inverse(nxt, cur, f, carry, *c, fmt.frac_bits, value)
        expected = reference.inverse(nxt, cur, f, carry, *c, fmt.frac_bits, value)
        wrong += sum(not _same(a, b) for a, b in zip((*ours, *back), (*theirs, *expected)))
    return Result("compiled kernels give the reference's bits", wrong == 0, wrong, 0, "outputs that differ", f"{7 * layers} outputs of {_LENGTH} elements")


def round_trip(scheme: Scheme, fmt: StateFormat, value: torch.dtype, layers: int = 4) -> Result:
    """``inverse(step(prev)) == prev``: bit for bit in fixed point, within the derived rounding bound in float states.

    Float bound: step and inverse round at most six intermediates, each of magnitude at most
    M = \\|alpha prev\\| + \\|beta cur\\| + \\|gamma f\\| + \\|next\\| (or lose a smallest subnormal ``tiny``), and the inverse divides by
    alpha: ``8 (eps M + tiny) / |alpha|``.
    """
    worst, bound = 0.0, 0.0 if fmt.exact else 1.0
    for prev, cur, f, c in _operands(scheme, fmt, value, layers):
        _, nxt, carry, _ = ops.step(prev, cur, f, *c, fmt.frac_bits, None)
        back = ops.inverse(nxt, cur, f, carry, *c, fmt.frac_bits, None)[1]
        if fmt.exact:
            worst = max(worst, float((back != prev).sum()))
            continue
        eps, tiny = torch.finfo(fmt.dtype).eps, max(torch.finfo(fmt.dtype).smallest_normal * torch.finfo(fmt.dtype).eps, 5e-324)
        m = abs(c.alpha) * prev.abs().double() + abs(c.beta) * cur.abs().double() + abs(c.gamma) * f.abs().double() + nxt.abs().double()
        error = (back.double() - prev.double()).abs() * abs(c.alpha) / (8 * (eps * m + tiny))
        worst = max(worst, float(error.max()))
    unit = "elements that differ" if fmt.exact else "of the bound 8 (eps M + tiny) / |alpha|"
    return Result(
        "one step undone" + (" bit for bit" if fmt.exact else " within rounding"), worst <= bound, worst, bound, unit, f"{layers} layers of {_LENGTH} elements"
    )


def overflow(scheme: Scheme, fmt: StateFormat) -> Result:
    """A value out of range, NaN or infinite is flagged at its index, never wrapped unseen. Exact formats only."""
    missed = 0
    zeros = fmt.encode(torch.zeros(_LENGTH))[1]
    gamma = scheme.coefficients(0).gamma
    for position, value in ((0, fmt.limit * 4 / gamma), (77, -fmt.limit * 4 / gamma), (_LENGTH - 1, float("nan")), (1030, float("inf"))):
        f = torch.zeros(_LENGTH)
        f[position] = value
        stats = ops.read_stats(ops.step(zeros, zeros, f, *scheme.coefficients(0), fmt.frac_bits, None)[3])[0]
        missed += not (stats.bad == 1 and stats.first_bad == position and stats.largest >= fmt.limit)
    top = zeros.clone()
    top[33] = 2**31 - 1 if fmt.dtype == torch.int32 else 2**62 - 1
    one = torch.zeros(_LENGTH)
    one[33] = 1.0 / gamma
    missed += ops.read_stats(ops.step(top, top, one, 1.0, 0.0, gamma, fmt.frac_bits, None)[3])[0].bad != 1
    return Result("a value out of range is flagged", missed == 0, missed, 0, "missed values", "4 increments and one sum")
