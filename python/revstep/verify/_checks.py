"""The measurements behind :mod:`revstep.verify`: are rebuilt states and gradients those of stored autograd,
and how much does a stack multiply a rounding error of float states?
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .._recurrence.walk import times
from ..errors import ConfigError, RevstepError
from ..ops import reference
from ..schemes import Coefficients, RowCoefficients, Scheme
from ..stack import ReversibleStack
from ..stack._arguments import increment
from ..state import Float, StateFormat

# ------------------------------------------------------------------------------------------------------------
# One claim, measured.


@dataclass(frozen=True)
class Result:
    """A claim with its measurement; data, not an exception.

    Attributes:
        claim: what was measured, in words.
        ok: whether the claim holds.
        measured: the figure, in ``unit``.
        bound: the most it may be, in ``unit``.
        unit: of both.
        why: one sentence: what the figure is, or what went wrong.
    """

    claim: str
    ok: bool
    measured: float
    bound: float
    unit: str
    why: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "FAILS"
        return (
            f"{self.claim}: {verdict} ({self.measured:.3g} {self.unit}, at most"
            f" {self.bound:.3g}){': ' + self.why if self.why else ''}"
        )


def failed(claim: str, unit: str, error: Exception) -> Result:
    """A claim that could not be measured because the code under test raised."""
    return Result(claim, False, float("inf"), 0.0, unit, f"{type(error).__name__}: {error}")


# ------------------------------------------------------------------------------------------------------------
# The stored oracle: ordinary autograd through the same recurrence, every state kept, pure-torch reference
# arithmetic.


class _Rounded(torch.autograd.Function):
    """A value computed elsewhere, with the gradient of ``alpha prev + beta cur + gamma f`` (rounding is the
    identity in backward).
    """

    @staticmethod
    def forward(
        ctx: Any, value: Tensor, coefficients: Coefficients, prev: Tensor, cur: Tensor, f: Tensor
    ) -> Tensor:
        ctx.coefficients = coefficients
        ctx.dtype = f.dtype
        return value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        c = ctx.coefficients
        g_prev, g_cur, g_f = (_per_row(c, lambda one, i=i: g * one[i]) for i in range(3))
        return (
            None,
            None,
            g_prev,
            None if isinstance(c, Coefficients) and c.beta == 0.0 else g_cur,
            g_f.to(ctx.dtype),
        )


def _per_row(c: Coefficients | RowCoefficients, compute: Callable[[Coefficients], Tensor]) -> Tensor:
    """``compute`` with the coefficients; where rows differ, with both sets, and each row taken
    from its own.
    """
    if isinstance(c, Coefficients):
        return compute(c)
    first, second = compute(c.first), compute(c.second)
    return torch.stack([(second if chosen else first)[row] for row, chosen in enumerate(c.choice.tolist())])


def _float(state: Tensor, fmt: StateFormat, dtype: torch.dtype) -> Tensor:
    return reference.decode(state, fmt.frac_bits, dtype)


def stored(stack: ReversibleStack, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """What ``stack(x, ...)`` computes, with nothing rebuilt: memory grows with depth, and ``backward`` is
    torch's own.

    Shares with the stack only its blocks and the scheme's coefficients. Same shapes, dtypes and readout, but
    x is one tensor, not a pair, and what blocks return beside their increments is left out.
    """
    fmt, scheme = stack.state, stack.scheme
    blocks = [half for b in stack.blocks for half in (b.halves() if scheme.halves == 2 else (b,))]
    start = reference.encode(x.detach(), fmt.dtype, fmt.frac_bits, None)[1]
    states = [start, start]
    entry = Coefficients(1.0, 0.0, 0.0)
    view = _Rounded.apply(_float(start, fmt, x.dtype), entry, x, x, torch.zeros_like(x))
    views = [view, view]
    for c, block in zip(scheme.draw(len(blocks), stack.start, len(x), stack.training), blocks):
        f = increment(block(views[-1], *args, **kwargs))[0]
        # The residual step: on integers it is the one with prev = cur.
        if isinstance(c, Coefficients) and c.alpha == 0.0:
            states[-2] = states[-1]
            views[-2] = views[-1]
            c = Coefficients(c.beta, 0.0, c.gamma)
        step = functools.partial(reference.step, states[-2], states[-1], f.detach())
        states.append(_per_row(c, lambda one, step=step: step(*one, fmt.frac_bits, None)[1]))
        views.append(_Rounded.apply(_float(states[-1], fmt, x.dtype), c, views[-2], views[-1], f))
    if stack.readout == "pair":
        return views[-2], views[-1]
    return views[-1] if stack.readout == "last" else (views[-2] + views[-1]) * 0.5


# ---- Are the rebuilt states the computed ones, and if not, how far off? ----


def drift(stack: ReversibleStack, x: Tensor, *args: Any, **kwargs: Any) -> list[float]:
    """Relative error (2-norm) of each rebuilt state, by depth from s[0]; 0.0 means bit-equal. Any state
    format.
    """
    checks, stack.checks = stack.checks, False
    try:
        states = stack.states(x, *args, **kwargs)
        rebuilt = stack.reconstruct(states.last_two)
    finally:
        stack.checks = checks
    return [0.0 if torch.equal(a, b) else _relative(a, b) for a, b in zip(states, rebuilt)]


def _relative(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    norm = float(a.norm())
    return float((b - a).norm()) / norm if norm else float("inf")


def reconstruction(stack: ReversibleStack, x: Tensor, *args: Any, **kwargs: Any) -> Result:
    """Every state rebuilt from the last two, against the forward pass. Exact formats must match bit for bit.

    For float states the claim is only that the error is measured (``bound`` is infinite); the figure is the
    worst state's relative error.
    """
    claim = "every state rebuilt bit for bit" if stack.state.exact else "reconstruction error measured"
    try:
        errors = drift(stack, x, *args, **kwargs)
    except RevstepError as e:
        return failed(claim, "relative error", e)
    worst = max(errors, key=lambda e: float("inf") if e != e else e)
    wrong = sum(e != 0.0 for e in errors)
    bound = 0.0 if stack.state.exact else float("inf")
    return Result(
        claim,
        worst <= bound,
        worst,
        bound,
        "relative error",
        f"{len(errors) - wrong} of {len(errors)} states bit-equal",
    )


# ---- Reversible gradients against the stored oracle's ----


def _gradients(
    run: Callable[[Tensor], Any], stack: ReversibleStack, x: Tensor, context: Callable[[], Any], seed: int
) -> list[Tensor]:
    """Output, input gradient, parameter gradients, and the next random number, of one seeded
    training pass.
    """
    leaf = x.detach().clone().requires_grad_()
    parameters = [p for p in stack.parameters() if p.requires_grad]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with context():
            y = run(leaf)
        outputs = y if isinstance(y, tuple) else (y,)
        weights = [
            torch.randn(t.shape, generator=torch.Generator().manual_seed(seed)).to(t.dtype).to(t.device)
            for t in outputs
        ]
        grads = torch.autograd.grad(outputs, [leaf, *parameters], weights, allow_unused=True)
        after = torch.rand(1)
    return [*(t.detach() for t in outputs), *(torch.zeros(()) if g is None else g for g in grads), after]


def _states(stack: ReversibleStack, out: Any) -> Any:
    """What a stack returned, without what its blocks returned beside their increments."""
    auxiliary = isinstance(out, tuple) and (stack.readout != "pair" or isinstance(out[0], tuple))
    return out[0] if auxiliary else out


def gradients(
    stack: ReversibleStack,
    x: Tensor,
    *args: Any,
    context: Callable[[], Any] = contextlib.nullcontext,
    seed: int = 0,
    **kwargs: Any,
) -> Result:
    """Output, gradients of input and parameters, and the random generator left behind: reversible against
    :func:`stored`.

    Args:
        stack: its parameters' ``grad`` stays what it is.
        x: an input of the stack, not a pair; further arguments are the blocks'.
        seed: of torch's generators in each of the two passes.
        context: a factory of context managers entered around the forward pass, e.g. ``lambda:
            torch.autocast("cpu")``.

    Exact formats must agree bit for bit. For float states the figure is reported only (``bound`` is
    infinite).
    """
    exact = stack.state.exact
    claim = (
        "gradients equal stored autograd bit for bit"
        if exact
        else "gradient error against stored autograd measured"
    )
    try:
        ours = _gradients(lambda t: _states(stack, stack(t, *args, **kwargs)), stack, x, context, seed)
        theirs = _gradients(lambda t: stored(stack, t, *args, **kwargs), stack, x, context, seed)
    except RevstepError as e:
        return failed(claim, "relative error", e)
    errors = [
        0.0 if torch.equal(a, b) else float((a - b).double().norm() / b.double().norm().clamp_min(1e-300))
        for a, b in zip(ours, theirs)
    ]
    worst = max(errors, key=lambda e: float("inf") if e != e else e)
    bound = 0.0 if exact else float("inf")
    equal = sum(e == 0.0 for e in errors)
    return Result(
        claim, worst <= bound, worst, bound, "relative error", f"{equal} of {len(errors)} tensors bit-equal"
    )


# ------------------------------------------------------------------------------------------------------------
# When float states are enough: how much a stack multiplies a rounding error, measured, and bounded by a
# formula.

#: Roundings of one step forwards and back, in units of the roundoff of the largest state: at most four
#: products and sums each way.
ROUNDINGS = 8.0
#: Relative error of a rebuilt state that a gradient is usually good enough with; what ``Float`` warns above.
TOLERANCE = 1e-3


def unit_roundoff(dtype: torch.dtype) -> float:
    """Half the distance from 1 to the next number."""
    return torch.finfo(dtype).eps / 2


@dataclass(frozen=True)
class Amplification:
    """What a stack does to roundings on the way back.

    Attributes:
        factor: worst relative error of a rebuilt state over the unit roundoff, measured with states and
            blocks in float64.
        increment: largest \\|gamma f\\| over the largest state of the step: the share of a step that blocks
            in a narrower format round.
        steps: of the stack.
    """

    factor: float
    increment: float
    steps: int

    def error(self, state: torch.dtype = torch.float32, block: torch.dtype | None = None) -> float:
        """Expected worst relative error with states in ``state`` and blocks that compute in ``block`` (None:
        the same); above 1 nothing is left.
        """
        rounding = unit_roundoff(state)
        if block is not None and block != state:
            rounding = max(rounding, self.increment * unit_roundoff(block))
        return self.factor * rounding

    def enough(
        self,
        state: torch.dtype = torch.float32,
        block: torch.dtype | None = None,
        tolerance: float = TOLERANCE,
    ) -> bool:
        """Whether float states keep a tenth of ``tolerance``: the expectation is good to a factor of ten."""
        return self.error(state, block) <= tolerance / 10


def amplification(stack: ReversibleStack, x: Tensor, *args: Any, **kwargs: Any) -> Amplification:
    """Measure it on a float64 copy of the stack's blocks, whatever the stack's own state format.

    The same input and arguments as a forward pass; one pass forwards and one back. Raises nothing of its own:
    a stack that grows beyond float64 has an infinite factor.
    """
    wide = copy.deepcopy(stack).double()
    wide.state = Float(torch.float64, max_error=math.inf)
    x, args, kwargs = tree_map(_wide, (x, args, kwargs))
    with torch.random.fork_rng():
        before = torch.get_rng_state()
        coefficients = stack.scheme.draw(
            stack.steps, stack.start, len(x[0] if isinstance(x, tuple) else x), stack.training
        )
        torch.set_rng_state(before)  # the pass draws the same ones
        states = [s.double() for s in wide.states(x, *args, **kwargs)]
        errors = drift(wide, x, *args, **kwargs)
    worst = max((math.inf if math.isnan(e) else e for e in errors), default=0.0)
    increment = 0.0
    for k, c in enumerate(coefficients):
        moved = (
            (states[k + 2] - times(states[k], c, "alpha") - _or_zero(times(states[k + 1], c, "beta")))
            .abs()
            .max()
        )
        increment = max(increment, float(moved / max(float(s.abs().max()) for s in states[k : k + 3])))
    return Amplification(worst / unit_roundoff(torch.float64), increment, stack.steps)


def _or_zero(x: Tensor | None) -> Tensor | float:
    return 0.0 if x is None else x


def _wide(x: Any) -> Any:
    return x.detach().double() if isinstance(x, Tensor) and x.is_floating_point() else x


def float_bound(scheme: Scheme, steps: int, lipschitz: float, roundoff: float = 2.0**-24) -> float:
    """A bound of the error of the rebuilt start, relative to the largest state, for first-order schemes with
    0 < alpha <= 1 and beta = 1 - alpha, the same in every layer, and Hamiltonian with a = b = 1.

    ``8 u n prod(1/|alpha_k|) exp(sum g_k L)``: u the unit roundoff, n the steps, L a bound of the blocks'
    derivatives (2-norm), and g = gamma / (1 + alpha) (h of Midpoint and Blend; of Hamiltonian, whose beta is
    0, gamma itself). Proof in docs/float-states.md.

    Raises:
        ConfigError: a scheme with other coefficients (Leapfrog sums its errors twice, MidpointBlend may have
            alpha < 0), or with others from layer to layer (Blend with a list of c: the proof weighs the
            errors of two neighbouring states by a number that has to be the same for all layers).
    """
    growth = 0.0
    for k in range(steps):
        alpha, beta, gamma = scheme.coefficients(k)
        if (alpha, beta, gamma) != scheme.coefficients(0):
            raise ConfigError(
                f"{scheme.name} has other coefficients at step {k} than at step 0: float_bound needs the same"
                " in every layer, as its proof does; verify.amplification measures"
            )
        if not 0 < alpha <= 1 or (beta not in (0.0, 1.0 - alpha)) or (beta == 0.0 and alpha != 1.0):
            raise ConfigError(
                f"{scheme.name} has alpha = {alpha}, beta = {beta} at step {k}: float_bound needs 0 < alpha"
                " <= 1 and beta = 1 - alpha, or (1, 0)"
            )
        growth += abs(gamma) * lipschitz / (1.0 if scheme.halves == 2 else 1.0 + alpha) - math.log(alpha)
    return ROUNDINGS * roundoff * steps * math.exp(min(growth, 700.0))
