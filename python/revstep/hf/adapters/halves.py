"""The split of a sequential pre-norm layer into F (attention half) and G (MLP half), shared by the adapters that name the modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from ...errors import UnsupportedError
from ...stack.stream import FirstBranch, Stream
from .base import Adapter, LayerBlock


class FirstHalf(LayerBlock):
    """F(p): the first branch that the layer's own forward adds to its stream; what follows it is not run."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        try:
            self.own_forward(Stream.of(x, stop=True), *args, **kwargs)
        except FirstBranch as first:
            return first.branch
        raise UnsupportedError(f"{type(self.layer).__name__} adds nothing to its stream, so it has no attention half")


class SecondHalf(nn.Module):
    """G(q): a chain of the layer's modules, looked up by name at each call (an adapter library may have wrapped them), applied to the stream."""

    def __init__(self, layer: nn.Module, names: Sequence[str]):
        super().__init__()
        self.layer, self.names = layer, tuple(names)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        rest: tuple = ()
        for name in self.names:
            x = getattr(self.layer, name)(x)
            if isinstance(x, tuple):  # a mixture of experts with its router's logits
                x, rest = x[0], (*rest, *x[1:])
        return (x, *rest) if rest else x


class SplitBlock(nn.Module):
    """One layer as the pair (F, G)."""

    def __init__(self, first: nn.Module, second: nn.Module):
        super().__init__()
        self.first, self.second = first, second

    def halves(self) -> tuple[nn.Module, nn.Module]:
        return self.first, self.second


class SplitAdapter(Adapter):
    """Adapters for Hamiltonian. ``second``: names of the modules of the MLP half, in order; ``absent``: names that tell another layout."""

    name = ""
    streams = 2
    second: ClassVar[tuple[str, ...]] = ()
    absent: ClassVar[tuple[str, ...]] = ()

    def missing(self, layer: nn.Module) -> str:
        lacking = [name for name in self.second if not isinstance(getattr(layer, name, None), nn.Module)]
        if lacking:
            return f"{self.name} needs the module(s) {', '.join(lacking)}"
        other = [name for name in self.absent if isinstance(getattr(layer, name, None), nn.Module)]
        return f"{self.name} does not know what {', '.join(other)} does" if other else ""

    def block(self, layer: nn.Module, forward: Callable[..., Any]) -> nn.Module:
        return SplitBlock(FirstHalf(layer, forward), SecondHalf(layer, self.second))
