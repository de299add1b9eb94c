"""The claims of reversible stacks behind ``revstep verify``, measured for every registered scheme, state
format and block dtype: those of the step kernels alone, and those of whole stacks of example blocks.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from revstep import ops
from revstep.errors import AmplificationWarning, ReconstructionError, ReconstructionWarning
from revstep.ops import reference
from revstep.schemes import Scheme, available
from revstep.stack import ReversibleStack
from revstep.state import FixedPoint, Float, StateFormat
from revstep.verify._checks import Result, gradients, reconstruction
from revstep.verify.blockcheck._load import DTYPES

# ------------------------------------------------------------------------------------------------------------
# A small pre-norm transformer block with everything real ones have that can break reconstruction.


class Attention(nn.Module):
    """``Attn(LN p)``: causal SDPA, two heads."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm, self.qkv, self.out, self.dropout = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
            dropout,
        )

    def forward(self, p: Tensor) -> Tensor:
        # (B, 2, T, C/2) each
        q, k, v = self.qkv(self.norm(p)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(-2)
        return F.dropout(self.out(a), self.dropout, self.training)


class MLP(nn.Module):
    """``MLP(LN p)``."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm, self.up, self.down, self.dropout = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
            dropout,
        )

    def forward(self, p: Tensor) -> Tensor:
        return F.dropout(self.down(F.gelu(self.up(self.norm(p)))), self.dropout, self.training)


class Block(nn.Module):
    """The increment ``f(p) = a + MLP(p + a), a = Attn(p)`` (Gal et al. 2512.02056, 2.5), or the halves
    (attention, MLP).
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.attention, self.mlp = Attention(width, dropout), MLP(width, dropout)

    def halves(self) -> tuple[nn.Module, nn.Module]:
        return self.attention, self.mlp

    def forward(self, p: Tensor) -> Tensor:
        a = self.attention(p)
        return a + self.mlp(p + a)


def example_blocks(
    layers: int,
    width: int = 32,
    dropout: float = 0.1,
    scale: float = 4.0,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> list[Block]:
    """``layers`` blocks, GPT-2 initialisation (std 0.02) times ``scale``; 4 to 8 resembles
    trained weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        blocks = [Block(width, dropout) for _ in range(layers)]
        for block in blocks:
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=0.02 * scale)
                    nn.init.zeros_(module.bias)
    return [b.to(dtype) for b in blocks]


def example_input(
    width: int = 32, batch: int = 2, length: int = 9, dtype: torch.dtype = torch.float32, seed: int = 1
) -> Tensor:
    """Standard normal hidden states (batch, length, width)."""
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


# ------------------------------------------------------------------------------------------------------------
# The step kernels alone: compiled against the pure-torch reference, and step against inverse, on hard values.

_LENGTH = 1061  # odd, not a multiple of 32: tails are exercised


def hard_values(dtype: torch.dtype, scale: float, seed: int) -> Tensor:
    """Normal, tiny, subnormal, signed zero and tie values (``_LENGTH``,) of a float dtype, none above ``8
    scale``.
    """
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
    return Result(
        "compiled kernels give the reference's bits",
        wrong == 0,
        wrong,
        0,
        "outputs that differ",
        f"{7 * layers} outputs of {_LENGTH} elements",
    )


def round_trip(scheme: Scheme, fmt: StateFormat, value: torch.dtype, layers: int = 4) -> Result:
    """``inverse(step(prev)) == prev``: bit for bit in fixed point, within the derived rounding bound in float
    states.

    Float bound: step and inverse round at most six intermediates, each of magnitude at most
    M = \\|alpha prev\\| + \\|beta cur\\| + \\|gamma f\\| + \\|next\\| (or lose a smallest subnormal
    ``tiny``), and the inverse divides by alpha: ``8 (eps M + tiny) / |alpha|``.
    """
    worst, bound = 0.0, 0.0 if fmt.exact else 1.0
    for prev, cur, f, c in _operands(scheme, fmt, value, layers):
        _, nxt, carry, _ = ops.step(prev, cur, f, *c, fmt.frac_bits, None)
        back = ops.inverse(nxt, cur, f, carry, *c, fmt.frac_bits, None)[1]
        if fmt.exact:
            worst = max(worst, float((back != prev).sum()))
            continue
        eps, tiny = (
            torch.finfo(fmt.dtype).eps,
            max(torch.finfo(fmt.dtype).smallest_normal * torch.finfo(fmt.dtype).eps, 5e-324),
        )
        m = (
            abs(c.alpha) * prev.abs().double()
            + abs(c.beta) * cur.abs().double()
            + abs(c.gamma) * f.abs().double()
            + nxt.abs().double()
        )
        error = (back.double() - prev.double()).abs() * abs(c.alpha) / (8 * (eps * m + tiny))
        worst = max(worst, float(error.max()))
    unit = "elements that differ" if fmt.exact else "of the bound 8 (eps M + tiny) / |alpha|"
    return Result(
        "one step undone" + (" bit for bit" if fmt.exact else " within rounding"),
        worst <= bound,
        worst,
        bound,
        unit,
        f"{layers} layers of {_LENGTH} elements",
    )


def overflow(scheme: Scheme, fmt: StateFormat) -> Result:
    """A value out of range, NaN or infinite is flagged at its index, never wrapped unseen. Exact formats
    only.
    """
    missed = 0
    zeros = fmt.encode(torch.zeros(_LENGTH))[1]
    gamma = scheme.coefficients(0).gamma
    for position, value in (
        (0, fmt.limit * 4 / gamma),
        (77, -fmt.limit * 4 / gamma),
        (_LENGTH - 1, float("nan")),
        (1030, float("inf")),
    ):
        f = torch.zeros(_LENGTH)
        f[position] = value
        stats = ops.read_stats(ops.step(zeros, zeros, f, *scheme.coefficients(0), fmt.frac_bits, None)[3])[0]
        missed += not (stats.bad == 1 and stats.first_bad == position and stats.largest >= fmt.limit)
    top = zeros.clone()
    top[33] = 2**31 - 1 if fmt.dtype == torch.int32 else 2**62 - 1
    one = torch.zeros(_LENGTH)
    one[33] = 1.0 / gamma
    missed += ops.read_stats(ops.step(top, top, one, 1.0, 0.0, gamma, fmt.frac_bits, None)[3])[0].bad != 1
    return Result(
        "a value out of range is flagged", missed == 0, missed, 0, "missed values", "4 increments and one sum"
    )


# ---- Does the check that runs on every backward pass notice the smallest corruption? ----


def checksums(stack: ReversibleStack, x: Tensor, flips: int = 8, seed: int = 0) -> Result:
    """Flip one bit of one of the last two states and rebuild: each flip must raise ReconstructionError. Exact
    formats only.
    """
    states = stack.states(x)
    generator = torch.Generator().manual_seed(seed)
    missed = 0
    for trial in range(flips):
        prev, cur = (s.clone() for s in states.last_two[:2])
        victim = (prev, cur)[trial % 2].view(-1)
        index = int(torch.randint(victim.numel(), (), generator=generator))
        victim[index] ^= 1 << int(torch.randint(20, (), generator=generator))
        try:
            stack.reconstruct(states.last_two._replace(prev=prev, cur=cur))
            missed += 1
        except ReconstructionError:
            pass
    return Result("one flipped bit is found", missed == 0, missed, 0, "missed flips", f"{flips} flips tried")


# ------------------------------------------------------------------------------------------------------------
# The table behind ``revstep verify``: every registered scheme x state format x block dtype, every claim
# measured.

FORMATS: dict[str, StateFormat] = {
    "fixed32": FixedPoint(32),
    "fixed64": FixedPoint(64),
    "float32": Float(torch.float32),
    "float64": Float(torch.float64),
}
LAYERS = 7
#: Step size of the stacks, where a scheme's default would leave the range of fixed32 with blocks at four
#: times their initial scale. Options that suit the example blocks; signs drawn per row are fixed, so that
#: passes can be compared.
OPTIONS = {"leapfrog": {"h": 0.5}, "bdia": {"seed": 1}}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    scheme: str
    state: str
    dtype: str

    def build_scheme(self) -> Scheme:
        return available()[self.scheme](**OPTIONS.get(self.scheme, {}))

    def stack(self, start: str, layers: int = LAYERS) -> ReversibleStack:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", AmplificationWarning)
            return ReversibleStack(
                example_blocks(layers, dtype=DTYPES[self.dtype][0]),
                self.build_scheme(),
                state=FORMATS[self.state],
                start=start,
            )

    def context(self) -> Callable[[], Any]:
        autocast = DTYPES[self.dtype][1]
        return contextlib.nullcontext if autocast is None else lambda: torch.autocast("cpu", dtype=autocast)

    def run(self) -> list[Result]:
        """All claims of this row."""
        scheme, fmt, value = self.build_scheme(), FORMATS[self.state], DTYPES[self.dtype][0]
        results = [agreement(scheme, fmt, value), round_trip(scheme, fmt, value)]
        if fmt.exact:
            results.append(overflow(scheme, fmt))
        x = example_input(dtype=value)
        for start in scheme.starts:
            stack = self.stack(start)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ReconstructionWarning)
                with self.context()():
                    results.append(_named(reconstruction(stack, x), start))
                results.append(_named(gradients(stack, x, context=self.context()), start))
                if fmt.exact:
                    # No dropout; the stack itself stays in training, where every scheme is reversible
                    stack.blocks.eval()
                    results.append(_named(checksums(stack, x), start))
        return results


def _named(result: Result, start: str) -> Result:
    return Result(
        f"{result.claim} (start {start})",
        *(getattr(result, f) for f in ("ok", "measured", "bound", "unit", "why")),
    )


def cases() -> list[Case]:
    """Every combination; the registry decides which schemes there are."""
    return [Case(scheme, state, dtype) for scheme in available() for state in FORMATS for dtype in DTYPES]


def run_suite(rows: list[Case] | None = None) -> Iterator[tuple[Case, list[Result]]]:
    """Measure row by row, so that a caller can show progress."""
    for case in cases() if rows is None else rows:
        yield case, case.run()
