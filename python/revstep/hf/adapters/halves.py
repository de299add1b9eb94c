"""The split of a sequential pre-norm layer into F (attention half) and G (MLP half), and the layers that are
split so.
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
    """GPT-NeoX and Pythia, one half after the other; side by side they are :class:`.parallel.Parallel`'s."""

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
