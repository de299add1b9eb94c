"""Adapters that split a decoder layer into two halves, F (attention) and G (MLP), for schemes of two streams:
layers whose halves follow one another, and layers whose halves read the same state.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ...errors import UnsupportedError
from ...stack._stream import FirstBranch, Stream, remembered
from ._base import Adapter, LayerBlock

# ------------------------------------------------------------------------------------------------------------
# The split of a sequential pre-norm layer into F (attention half) and G (MLP half).


class FirstHalf(LayerBlock):
    """F(p): the first branch that the layer's own forward adds to its stream; what follows it is not run."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        try:
            self.own_forward(Stream.of(x, stop=True), *args, **kwargs)
        except FirstBranch as first:
            return first.branch
        raise UnsupportedError(
            f"{type(self.layer).__name__} adds nothing to its stream, so it has no attention half"
        )


class SecondHalf(nn.Module):
    """G(q): a chain of the layer's modules, applied to the stream.

    They are looked up by name at each call, for an adapter library may have wrapped them. A module that takes
    the ``residual`` as well adds to it (Bloom's MLP): what it adds is its output here.
    """

    def __init__(self, layer: nn.Module, names: Sequence[str]):
        super().__init__()
        self.layer = layer
        self.names = tuple(names)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        rest: tuple = ()
        stream = x
        for name in self.names:
            module = getattr(self.layer, name)
            x = _added_to(module, x, stream) if takes_residual(module) else module(x)
            if isinstance(x, tuple):  # a mixture of experts with its router's logits
                x, rest = x[0], (*rest, *x[1:])
        return (x, *rest) if rest else x


def _is_one(module: Any) -> bool:
    """A module that can be called; LongCat keeps two of each in a list."""
    return isinstance(module, nn.Module) and not isinstance(module, (nn.ModuleList, nn.ModuleDict))


@functools.lru_cache(maxsize=256)
def _parameters(cls: type) -> frozenset[str]:
    return frozenset(inspect.signature(cls.forward).parameters)


def takes_residual(module: nn.Module) -> bool:
    """The module's forward wants the residual stream, to which it adds."""
    return "residual" in _parameters(type(module))


def _added_to(module: nn.Module, x: Tensor, stream: Tensor) -> Tensor:
    """What the module adds to the residual stream that it is given."""
    delta = remembered(module(x, residual=Stream.of(stream)))
    if delta is None:
        raise UnsupportedError(
            f"{type(module).__name__} takes the residual stream and returns something else than its sum with "
            "a branch: pass an adapter of your own, or use a scheme of one stream such as Blend"
        )
    return delta


class SplitBlock(nn.Module):
    """One layer as the pair (F, G)."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def halves(self) -> tuple[nn.Module, nn.Module]:
        return self.first, self.second


class SplitAdapter(Adapter):
    """Adapters for Hamiltonian. ``second``: names of the modules of the MLP half, in order; ``absent``: names
    that tell another layout.
    """

    name = ""
    streams = 2
    second: ClassVar[tuple[str, ...]] = ()
    absent: ClassVar[tuple[str, ...]] = ()

    def missing(self, layer: nn.Module) -> str:
        lacking = [name for name in self.second if not _is_one(getattr(layer, name, None))]
        if lacking:
            return f"{self.name} needs the module(s) {', '.join(lacking)}"
        unknown = [name for name in self.absent if isinstance(getattr(layer, name, None), nn.Module)]
        return f"{self.name} does not know what {', '.join(unknown)} does" if unknown else ""

    def block(self, layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
        return SplitBlock(FirstHalf(layer, forward), SecondHalf(layer, self.second))


# ---- the layers that are split so: the modules of their MLP halves by name ----


class GPT2(SplitAdapter):
    """GPT-2 and others with the same names."""

    name = "gpt2"
    second = ("ln_2", "mlp")
    absent = ("crossattention",)


class Llama(SplitAdapter):
    """Llama, Mistral, Qwen2, Qwen3, Gemma and others with the same names."""

    name = "llama"
    second = ("post_attention_layernorm", "mlp")
    absent = ("pre_feedforward_layernorm", "post_feedforward_layernorm", "post_mlp_dropout")


class Mixtral(SplitAdapter):
    """Mixture of experts with the names of early Mixtral."""

    name = "mixtral"
    second = ("post_attention_layernorm", "block_sparse_moe")
    absent = ("pre_feedforward_layernorm",)


class NeoX(SplitAdapter):
    """GPT-NeoX and Pythia, one half after the other; side by side they are :class:`Parallel`'s."""

    name = "neox"
    second = ("post_attention_layernorm", "mlp", "post_mlp_dropout")

    def missing(self, layer: nn.Module) -> str:
        if getattr(layer, "use_parallel_residual", False):
            return "neox takes the sequential form, and use_parallel_residual is on"
        return super().missing(layer)


class Sandwich(SplitAdapter):
    """Gemma 2 and 3: norms before and after each branch."""

    name = "sandwich"
    second = ("pre_feedforward_layernorm", "mlp", "post_feedforward_layernorm")


# ------------------------------------------------------------------------------------------------------------
# The split of a layer whose attention and MLP read the same state: x + a(x) + m(x).

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
