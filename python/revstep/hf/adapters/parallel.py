"""The split of a layer whose attention and MLP read the same state: x + a(x) + m(x)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ._base import Adapter, LayerBlock
from .halves import SecondHalf, SplitBlock, takes_residual

#: (modules of the attention half, modules of the MLP half), in the order in which they are applied. The
#: attention is the second of its half, and gets the layer's own arguments.
LAYOUTS: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("input_layernorm", "self_attn", "resid_dropout"), ("input_layernorm", "mlp", "resid_dropout")),  # Phi
    (("input_layernorm", "self_attn"), ("input_layernorm", "mlp", "dropout")),  # StableLM
    (("input_layernorm", "self_attn"), ("input_layernorm", "mlp")),  # Cohere
    # NeoX, Pythia.
    (
        ("input_layernorm", "attention", "post_attention_dropout"),
        ("post_attention_layernorm", "mlp", "post_mlp_dropout"),
    ),
    (("ln_attn", "self_attention"), ("ln_mlp", "mlp")),  # Falcon, two norms
    (("input_layernorm", "self_attention"), ("input_layernorm", "mlp")),  # Falcon
    (("ln_1", "attn"), ("ln_1", "mlp")),  # GPT-J, CodeGen
)


def _is_norm(name: str) -> bool:
    return "norm" in name or name.startswith("ln_")


@functools.lru_cache(maxsize=256)
def _takes(cls: type) -> tuple[tuple[str, ...], bool]:
    """The names of the forward's parameters, with ``self``; whether it takes any other name as well."""
    found = inspect.signature(cls.forward).parameters
    return tuple(found), any(p.kind is p.VAR_KEYWORD for p in found.values())


class AttentionHalf(LayerBlock):
    """F(p): the layer's norm, its attention with those of the layer's arguments it takes, its dropout."""

    def __init__(self, layer: nn.Module, forward: Callable[..., Any], names: Sequence[str]):
        super().__init__(layer, forward)
        self.names = tuple(names)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        norm, attention, *after = self.names
        given = dict(zip(_takes(type(self.layer))[0][2:], args)) | kwargs
        module = getattr(self.layer, attention)
        takes, anything = _takes(type(module))
        given = given if anything else {name: value for name, value in given.items() if name in takes}
        out = module(getattr(self.layer, norm)(x), **given)
        out = out[0] if isinstance(out, tuple) else out
        for name in after:
            out = getattr(self.layer, name)(out)
        return out


class ParallelBlock(SplitBlock):
    """One layer as the pair (F, G) of which neither reads the other: x + F(x) + G(x)."""

    parallel = True


class Parallel(Adapter):
    """Attention and MLP side by side: Falcon, GPT-NeoX and Pythia, GPT-J, CodeGen, Phi, Cohere, StableLM."""

    name = "parallel"
    streams = 2
    layouts: ClassVar[tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = LAYOUTS

    def missing(self, layer: nn.Module) -> str:
        layout = self._layout(layer)
        if layout is None:
            return "parallel needs a norm, an attention and an MLP by the names of Falcon, NeoX, GPT-J or Phi"
        norms = [name for name, _ in layer.named_children() if _is_norm(name)]
        unknown = [name for name in norms if name not in (*layout[0], *layout[1])]
        if unknown:
            return f"parallel does not know what {', '.join(unknown)} does"
        if takes_residual(layer.mlp):
            return "parallel does not know an MLP that adds to the residual stream itself"
        config = getattr(layer, "config", None)
        dropout = getattr(config, "hidden_dropout", 0.0)
        if dropout and not any(name.endswith("dropout") for name in layout[1]):
            return f"parallel does not apply config.hidden_dropout, which is {dropout}: set it to 0.0"
        return ""

    def block(self, layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
        first, second = self._layout(layer)
        return ParallelBlock(AttentionHalf(layer, forward, first), SecondHalf(layer, second))

    def _layout(self, layer: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """The first layout all of whose modules the layer has."""
        for first, second in self.layouts:
            if all(isinstance(getattr(layer, name, None), nn.Module) for name in (*first, *second)):
                return first, second
        return None
