"""Layers taken whole: what their own forward adds to its input, or the difference between output
and input.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...errors import UnsupportedError
from ...stack._stream import Stream, remembered
from ._base import Adapter, LayerBlock, with_rest


class BranchesBlock(LayerBlock):
    """f(x): the sum of what the layer's own forward adds to its stream."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.own_forward(Stream.of(x), *args, **kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
        delta = remembered(hidden)
        if delta is None:
            raise UnsupportedError(
                f"{type(self.layer).__name__} does not return its input plus what its branches add (it"
                " normalises, scales or recomputes its stream, as post-norm layers do), so it has no"
                " increment of its own. convert(adapter='difference') takes layer(x) - x, at the price of"
                " its rounding"
            )
        return with_rest(delta, out)


class Branches(Adapter):
    """Any layer whose output is its input plus branches, sequential or parallel: GPT-2, Llama, Qwen, Mistral,
    Gemma, NeoX, Phi, MoE layers.
    """

    name = "branches"

    def missing(self, layer: nn.Module) -> str:
        return ""  # whether the output is tracked is seen when it runs

    def block(self, layer: nn.Module, forward: Any) -> nn.Module:
        return BranchesBlock(layer, forward)


class DifferenceBlock(LayerBlock):
    """f(x) = layer(x) - x, in the precision of x: where x is much larger than f, the low bits of
    f are lost.
    """

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
