"""When float states are enough: how much a stack multiplies a rounding error, measured, and bounded by a
formula.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .._recurrence.walk import times
from ..errors import ConfigError
from ..schemes import Scheme
from ..stack import ReversibleStack
from ..state import Float
from ._checks import drift

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
