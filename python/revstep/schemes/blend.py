from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import ConfigError
from ._base import Claims, Coefficients, Scheme, finite, reversible


@dataclass(frozen=True, repr=False)
class Blend(Scheme):
    """Between the residual network (c = 0, which cannot be undone) and Midpoint (c = 1).

    The one to take for language models: it stays close to the residual network, and a pretrained one can be
    run as it, the more closely the smaller c is. ``revstep bench dial`` measures on real weights how closely
    (docs/benchmarks.md).

    **One c for all layers.** The step is ``p[j+1] = c p[j-1] + (1-c) p[j] + (1+c) h f_j(p[j])``, on y' =
    f(y). Its second solution is multiplied by -c in every layer, so for |c| < 1 it dies out. Undoing a layer
    in float states multiplies errors by 1/|c|. In fixed point it is exact, for ceil(log2(1/|c|)) carry bits
    an element and layer. c is rounded to a multiple of ``2**-24``.

    **A list with one c for each layer.** The step is ``p[j+1] = c_j p[j-1] + (1-c_j) p[j] + gamma_j h
    f_j(p[j])``. gamma_j is chosen such that the increment of layer j counts in the last state with
    ``weights[j]``, which is one in the residual network: ``gamma_j = weights[j] / (1 - c_{j+1} (1 - c_{j+2}
    (1 - ...)))``. To first order, layer j reads a state that is off by c_j times the increment before it. So
    a layer that is sensitive to this gets a smaller c_j, which costs more bits. The signs of c and the
    weights cost none. c_0 has no effect: with start ``"euler"`` no bits are kept for it, and the result is
    the same up to the rounding of the grid.

    Args:
        c: 2**-8 <= \\|c\\| <= 1: a number, or a list with one a layer.
        h: step size.
        weights: of the increments in the last state, one a layer; None: one each. Only with a list of c.

    Raises:
        ConfigError: c out of range, a list whose length is not the depth, weights without a list of c or of
            another length.

    Source: consistent two-step family; c = 1/2 with random sign is BDIA (Zhang, Lewis, Kleijn, ICML 2025); c
    < 0 is the Momentum residual network (Sander, Ablin, Blondel, Peyre, ICML 2021).
    docs/notes/0015-dial-by-layer.md derives the weights by layer.
    """

    c: float | Sequence[float] = 0.25
    h: float = 1.0
    weights: Sequence[float] | None = None
    _gammas: tuple[float, ...] = field(default=(), init=False, repr=False, compare=False)

    name = "blend"
    claims = Claims(
        equation="y' = f(y)",
        order=1,
        symmetric=False,
        symplectic=False,
        evaluations=1,
        stability="strongly stable forwards for |c| < 1 (roots 1 and -c); its inverse amplifies by 1/|c|,"
        " exact in fixed point",
        source="two-step family, c = 1/2: Zhang, Lewis, Kleijn, ICML 2025",
    )

    def __post_init__(self) -> None:
        several = not isinstance(self.c, str) and isinstance(self.c, Sequence)
        if several and not self.c:
            raise ConfigError(f"Blend c = {self.c!r}: expected a number, or a list with one a layer")
        given = tuple(self.c) if several else (self.c,)
        names = [f"Blend c[{j}]" for j in range(len(given))] if several else ["Blend c"]
        c = tuple(map(_weight_of_prev, names, given))
        object.__setattr__(self, "c", c if several else c[0])
        object.__setattr__(self, "h", finite("Blend h", self.h))
        if self.weights is not None:
            self._check_weights(several)
        object.__setattr__(self, "_gammas", gammas(self.c, self.weights) if several else ())

    def _check_weights(self, several: bool) -> None:
        if not several or isinstance(self.weights, str) or not isinstance(self.weights, Sequence):
            raise ConfigError(
                f"Blend weights = {self.weights!r}: expected a list with one number a layer, together with a"
                " list of c"
            )
        if len(self.weights) != len(self.c):
            got = f"{len(self.weights)} weights for {len(self.c)} values of c"
            raise ConfigError(f"Blend has {got}: give one of each a layer")
        weights = tuple(finite(f"Blend weights[{j}]", w) for j, w in enumerate(self.weights))
        object.__setattr__(self, "weights", weights)

    def __repr__(self) -> str:
        c, rest = self.c, "" if self.weights is None else ", weights by layer"
        if self.by_layer and len(c) > 8:
            bits = sum(-math.log2(abs(x)) for x in c) / len(c)
            c, rest = f"<{len(c)} by layer, -log2|c| {bits:.2f} on average>", rest
        elif self.weights is not None:
            rest = f", weights={self.weights}"
        return f"Blend(c={c}, h={self.h}{rest})"

    @property
    def by_layer(self) -> bool:
        """Every layer has a c of its own."""
        return isinstance(self.c, tuple)

    def check_depth(self, steps: int) -> None:
        if self.by_layer and len(self.c) != steps:
            raise ConfigError(
                f"Blend has {len(self.c)} values of c for {steps} layers: give one a layer, or one number"
            )

    def coefficients(self, layer: int) -> Coefficients:
        if not self.by_layer:
            return Coefficients(self.c, 1.0 - self.c, (1.0 + self.c) * self.h)
        if not 0 <= layer < len(self.c):
            raise ConfigError(f"Blend has values of c for layers 0 to {len(self.c) - 1}, got layer {layer}")
        c = self.c[layer]
        return Coefficients(c, 1.0 - c, self._gammas[layer] * self.h)

    def euler_gamma(self) -> float:
        return self._gammas[0] * self.h if self.by_layer else self.h


def gammas(c: Sequence[float], weights: Sequence[float] | None = None) -> tuple[float, ...]:
    """gamma_j with which increment j stands in the last state with its weight, for h = 1.

    Args:
        c: of every layer, also zero; weights: of every increment, None: one each.

    Raises:
        ConfigError: the layers above one take all of its increment out again.
    """
    found = []
    left = 1.0  # what the layers above leave of an increment
    for j in reversed(range(len(c))):
        if abs(left) < 2.0**-20:
            raise ConfigError(
                f"Blend c[{j + 1}] = {c[j + 1]} takes the whole increment of layer {j} out of the last state:"
                " give that layer |c| < 1"
            )
        found.append((1.0 if weights is None else weights[j]) / left)
        left = 1.0 - c[j] * left
    return tuple(reversed(found))


def _weight_of_prev(name: str, value: float) -> float:
    c = reversible(name, value)
    if abs(c) > 1:
        raise ConfigError(
            f"{name} = {c}: expected |c| <= 1 (above, the parasitic root -c grows); MidpointBlend takes any a"
            " up to 2"
        )
    return c
