from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import ConfigError
from ._base import Claims, Coefficients, RowCoefficients, Scheme, finite, reversible


@dataclass(frozen=True)
class BDIA(Scheme):
    """Bidirectional integration approximation: :class:`~revstep.Blend` with the sign of c drawn for each
    sample and layer.

    While training, the step of sample b is ``p[j+1] = c_bj p[j-1] + (1-c_bj) p[j] + (1+c_bj) h f_j(p[j])``
    with c_bj = +-``c``. In evaluation mode, and on average over the draw, it is the residual network ``p[j+1]
    = p[j] + h f_j(p[j])``, so the original architecture is what you deploy. Evaluation with gradients stores
    everything, as that network does. It needs one carry bit an element and layer for c = 1/2. The random
    signs act as a regulariser, so losses in training are higher.

    Args:
        c: 2**-8 <= \\|c\\| < 1, snapped to 2**-24.
        h: step size.
        seed: None: signs come from torch's CPU generator, anew for each pass (``torch.manual_seed`` and
            restored generators repeat them); a number: they depend on it, the layer and the batch size alone,
            the same in each pass.

    Source: Zhang, Lewis, Kleijn, On Exact Bit-level Reversible Transformers Without Changing Architecture,
    ICML 2025.
    """

    c: float = 0.5
    h: float = 1.0
    seed: int | None = None

    name = "bdia"
    recommended_start = "euler"
    per_sample = True
    claims = Claims(
        equation="y' = f(y)",
        order=1,
        symmetric=False,
        symplectic=False,
        evaluations=1,
        stability=(
            "strongly stable forwards for |c| < 1; its inverse amplifies by 1/|c|, exact in fixed point"
        ),
        source="Zhang, Lewis, Kleijn, ICML 2025",
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "c", reversible("BDIA c", self.c))
        object.__setattr__(self, "h", finite("BDIA h", self.h))
        if abs(self.c) >= 1:
            raise ConfigError(
                f"BDIA c = {self.c}: expected |c| < 1 (at c = -1 a sample would skip the block: 1 + c = 0)"
            )
        if self.seed is not None and (
            not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0
        ):
            raise ConfigError(
                f"BDIA seed = {self.seed!r}: expected a non-negative integer, or None to draw from torch's"
                " generator"
            )

    def _with(self, c: float) -> Coefficients:
        return Coefficients(c, 1.0 - c, (1.0 + c) * self.h)

    def coefficients(self, layer: int) -> Coefficients:
        """Of one sample whose signs are drawn from ``seed`` (None: 0): what the primitives on tensors use."""
        return self._with(-self.c if self._signs(layer, 1)[0] else self.c)

    def _signs(self, layer: int, rows: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(((self.seed or 0) << 20) + layer)
        return torch.randint(2, (rows,), dtype=torch.uint8, generator=generator)

    def draw(self, steps: int, start: str, rows: int, training: bool) -> list[Coefficients | RowCoefficients]:
        if not training:
            return [Coefficients(0.0, 1.0, self.h)] * steps
        if self.seed is None:
            choices = torch.randint(2, (steps, rows), dtype=torch.uint8)
        else:
            choices = (
                torch.stack([self._signs(k, rows) for k in range(steps)])
                if steps
                else torch.empty(0, rows, dtype=torch.uint8)
            )
        drawn: list[Coefficients | RowCoefficients] = [
            RowCoefficients(choice, self._with(self.c), self._with(-self.c)) for choice in choices
        ]
        if start == "euler" and drawn:
            drawn[0] = self.start_coefficients(0, start)
        return drawn

    def euler_gamma(self) -> float:
        return self.h
