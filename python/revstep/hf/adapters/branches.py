from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...errors import UnsupportedError
from ...stack.stream import Stream, remembered
from .base import Adapter, LayerBlock, with_rest


class BranchesBlock(LayerBlock):
    """f(x): the sum of what the layer's own forward adds to its stream."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.own_forward(Stream.of(x), *args, **kwargs)
        hidden = out[0] if isinstance(out, tuple) else out
        delta = remembered(hidden)
        if delta is None:
            raise UnsupportedError(
                f"{type(self.layer).__name__} does not return its input plus what its branches add (it "
                "normalises, scales or recomputes its stream, as post-norm layers do), so it has no increment "
                "of its own. convert(adapter='difference') takes layer(x) - x, at the price of its rounding"
            )
        return with_rest(delta, out)


class Branches(Adapter):
    """Any layer whose output is its input plus branches, sequential or parallel: GPT-2, Llama, Qwen, Mistral, Gemma, NeoX, Phi, MoE layers."""

    name = "branches"

    def missing(self, layer: nn.Module) -> str:
        return ""  # whether the output is tracked is seen when it runs

    def block(self, layer: nn.Module, forward: Any) -> nn.Module:
        return BranchesBlock(layer, forward)
