from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .base import Adapter, LayerBlock, with_rest


class DifferenceBlock(LayerBlock):
    """f(x) = layer(x) - x, in the precision of x: where x is much larger than f, the low bits of f are lost."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.own_forward(x, *args, **kwargs)
        return with_rest((out[0] if isinstance(out, tuple) else out) - x, out)


class Difference(Adapter):
    """Any layer at all, by subtraction. The last resort, never chosen by itself."""

    name = "difference"
    fallback = True

    def missing(self, layer: nn.Module) -> str:
        return ""

    def block(self, layer: nn.Module, forward: Any) -> nn.Module:
        return DifferenceBlock(layer, forward)
