"""How many elements a model's weights have: by layer, outside the layers, and those that train; and which
layers are alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from ._meter import nbytes


class Linear(NamedTuple):
    """Frozen linear weights inside the layers: elements and rows of outputs in all, and elements of the
    largest.
    """

    elements: int = 0
    rows: int = 0
    largest: int = 0


@dataclass(frozen=True)
class Weights:
    """Parameters of the full model, in elements: per layer (all, trainable), and outside the layers; and
    bytes an element of (all, trainable). ``head``: trainable elements of a head with a matrix of its own.
    """

    layers: tuple[tuple[int, int], ...]
    outside: tuple[int, int]
    width: tuple[float, float]
    buffers: int
    linear: Linear
    head: int = 0

    def total(self, trainable: bool) -> int:
        return self.outside[trainable] + sum(layer[trainable] for layer in self.layers)


def count(model: nn.Module, layers: Sequence[nn.Module]) -> Weights:
    parameters = list(model.parameters())
    ours = [_elements(layer.parameters()) for layer in layers]
    every = _elements(parameters)
    width = [
        sum(p.numel() * p.element_size() for p in some) / max(1, sum(p.numel() for p in some))
        for some in (parameters, _training(parameters))
    ]
    outside = tuple(every[i] - sum(layer[i] for layer in ours) for i in (0, 1))
    buffers = nbytes(model.buffers())
    linear = _frozen_linear(layers)
    return Weights(tuple(ours), outside, tuple(width), buffers, linear, _own_head(model))


def _own_head(model: nn.Module) -> int:
    """Trainable elements of the head, where its matrix is not the embedding's too."""
    ends = [getattr(model, f"get_{end}_embeddings", lambda: None)() for end in ("output", "input")]
    weights = [getattr(module, "weight", None) for module in ends]
    own = weights[0] is not None and weights[0] is not weights[1] and weights[0].requires_grad
    return weights[0].numel() if own else 0


def _frozen_linear(layers: Sequence[nn.Module]) -> Linear:
    # An adapter's own module is called Linear as well, and its weight is that of the layer inside it.
    inside = (
        m
        for layer in layers
        for m in layer.modules()
        if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"
    )
    found = [m for m in inside if not m.weight.requires_grad]
    sizes = [m.weight.numel() for m in found]
    rows = sum(m.weight.shape[1 if type(m).__name__ == "Conv1D" else 0] for m in found)
    return Linear(sum(sizes), rows, max(sizes, default=0))


def _training(parameters: Any) -> list[Tensor]:
    return [p for p in parameters if p.requires_grad]


def _elements(parameters: Any) -> tuple[int, int]:
    parameters = list(parameters)
    return sum(p.numel() for p in parameters), sum(p.numel() for p in _training(parameters))


def kind_of(config: Any, index: int, layer: nn.Module) -> tuple:
    """Layers of one kind have the same parameters and the same entries in the config's lists of one entry a
    layer.
    """
    listed = [
        (key, str(value[index]))
        for key, value in vars(config).items()
        if isinstance(value, (list, tuple)) and len(value) == config.num_hidden_layers
    ]
    return (*sorted(listed), *((n, tuple(p.shape), p.requires_grad) for n, p in layer.named_parameters()))
