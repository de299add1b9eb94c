from __future__ import annotations

from torch import nn

from .halves import SplitAdapter


class NeoX(SplitAdapter):
    """GPT-NeoX and Pythia, one half after the other; side by side they are :class:`.parallel.Parallel`'s."""

    name = "neox"
    second = ("post_attention_layernorm", "mlp", "post_mlp_dropout")
    absent = ()

    def missing(self, layer: nn.Module) -> str:
        if getattr(layer, "use_parallel_residual", False):
            return "neox takes the sequential form, and use_parallel_residual is on"
        return super().missing(layer)
