from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import ConfigError
from ..ops import snap
from ._base import Claims, Coefficients, Scheme, finite, reversible


@dataclass(frozen=True)
class MidpointBlend(Scheme):
    """The blended midpoint of Gal et al.: ``p[j+1] = a_j p[j-1] + (1 - a_j) p[j] + h f_j(p[j])``.

    Its inverse is ``p[j-1] = (p[j+1] - (1-a_j) p[j] - h f_j(p[j])) / a_j``. In fixed point it is exact, with
    one carry bit an element where 1/2 <= \\|a_j\\| < 1. With one fixed a it integrates y' = f(y) / (1 + a).
    With the a_j that are drawn at random, as by default, it integrates y' = f(y) on average over the draw,
    with order 1. Each a_j is rounded to a multiple of ``2**-24``.

    Args:
        h: step size.
        a: ``"paper"`` (default): a_j = +-1 + U(-1/2, 1/2), drawn once from ``seed`` and frozen, a function of
            (seed, j) alone; a number for all layers; or a list with one number a layer. 2**-8 <= \\|a\\| <=
            2.
        seed: of the paper's draw.

    Raises:
        ConfigError: a = 0 (not reversible), out of range, or a list whose length is not the depth.

    Source: Gal et al., arXiv 2512.02056, section 3.6.
    """

    h: float = 1.0
    a: float | Sequence[float] | str = "paper"
    seed: int = 0
    _drawn: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    name = "midpoint_blend"
    claims = Claims(
        equation="y' = f(y)", order=1, symmetric=False, symplectic=False, evaluations=1,
        stability="both directions only for |a| = 1; the residual step in expectation over the paper's a",
        source="Gal et al. 2512.02056, 3.6", in_expectation=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "h", finite("MidpointBlend h", self.h))
        if isinstance(self.a, str):
            if self.a != "paper":
                raise ConfigError(
                    f"MidpointBlend a = {self.a!r}: expected a number, a list of numbers or 'paper'"
                )
        elif isinstance(self.a, Sequence):
            object.__setattr__(
                self, "a", tuple(reversible(f"MidpointBlend a[{j}]", a) for j, a in enumerate(self.a))
            )
        else:
            object.__setattr__(self, "a", reversible("MidpointBlend a", self.a))
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ConfigError(f"MidpointBlend seed = {self.seed!r}: expected a non-negative integer")

    def check_depth(self, steps: int) -> None:
        if isinstance(self.a, tuple) and len(self.a) != steps:
            raise ConfigError(
                f"MidpointBlend has {len(self.a)} values of a for {steps} layers: give one a layer, or one"
                " number"
            )

    def blend(self, layer: int) -> float:
        """``a_j`` of this layer."""
        if isinstance(self.a, tuple):
            if not 0 <= layer < len(self.a):
                raise ConfigError(
                    f"MidpointBlend has values of a for layers 0 to {len(self.a) - 1}, got layer {layer}"
                )
            return self.a[layer]
        if self.a != "paper":
            return self.a
        if layer not in self._drawn:
            rng = np.random.Generator(np.random.Philox(key=self.seed, counter=[layer, 0, 0, 0]))
            sign = 1.0 if rng.random() < 0.5 else -1.0
            self._drawn[layer] = snap(sign + rng.uniform(-0.5, 0.5))
        return self._drawn[layer]

    def coefficients(self, layer: int) -> Coefficients:
        a = self.blend(layer)
        return Coefficients(a, 1.0 - a, self.h)

    def euler_gamma(self) -> float:
        return self.h
