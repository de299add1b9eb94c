from __future__ import annotations

from dataclasses import dataclass

from ..errors import ConfigError
from .base import Claims, Coefficients, Scheme, finite, reversible


@dataclass(frozen=True)
class Blend(Scheme):
    """The dial between the residual network (c = 0, not reversible) and Midpoint (c = 1).

    ``p[j+1] = c p[j-1] + (1-c) p[j] + (1+c) h f_j(p[j])``, on y' = f(y): a consistent two-step method whose roots at
    lambda = 0 are 1 and -c, so for |c| < 1 the parasitic mode dies forwards. The float inverse multiplies errors by 1/|c|
    a layer; the fixed-point one is exact for ceil(log2(1/|c|)) carry bits an element and layer. ``c`` is snapped to 2**-24.
    The one to use for language models: it tracks the residual network, and a pretrained one can be run as it.

    Args:
        c: 2**-8 <= \\|c\\| <= 1.
        h: step size.

    Source: consistent two-step family; c = 1/2 with random sign is BDIA (Zhang, Lewis, Kleijn, ICML 2025).
    """

    c: float = 0.25
    h: float = 1.0

    name = "blend"
    claims = Claims(
        equation="y' = f(y)", order=1, symmetric=False, symplectic=False, evaluations=1,
        stability="strongly stable forwards for |c| < 1 (roots 1 and -c); its inverse amplifies by 1/|c|, exact in fixed point",
        source="two-step family, c = 1/2: Zhang, Lewis, Kleijn, ICML 2025",
    )  # fmt: skip

    def __post_init__(self) -> None:
        object.__setattr__(self, "c", reversible("Blend c", self.c))
        object.__setattr__(self, "h", finite("Blend h", self.h))
        if abs(self.c) > 1:
            raise ConfigError(f"Blend c = {self.c}: expected |c| <= 1 (above, the parasitic root -c grows); MidpointBlend takes any a up to 2")

    def coefficients(self, layer: int) -> Coefficients:
        return Coefficients(self.c, 1.0 - self.c, (1.0 + self.c) * self.h)

    def euler_gamma(self) -> float:
        return self.h
