"""Putting a stack behind a model's decoder layers, and taking it away."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from ..errors import AmplificationWarning, UnsupportedError
from ..schemes import Scheme
from ..stack import ReversibleStack
from ..stack.sharded import ungathered
from ..state import StateFormat
from .adapters import Adapter, choose
from .layer_steps import Conversion, LayerStep
from .layers import decoder_layers
from .probe import probe
from .retrofit import Retrofit


def conversion(model: nn.Module) -> Conversion | None:
    """The :class:`Conversion` of a converted model (its stack, scheme, state and the report of the last backward pass), or None."""
    for module in model.modules():
        step = module.__dict__.get("forward")
        if isinstance(step, LayerStep):
            return step.conversion
    return None


def install(model: nn.Module, scheme: Scheme, state: StateFormat, start: str, retrofit: bool, adapter: str | Adapter | None, **options: Any) -> Conversion:
    """Replace the decoder layers' forward by steps of a stack; nothing else of the model changes. ``options`` are the stack's."""
    _, layers = decoder_layers(model)
    if any(map(ungathered, layers)):
        raise UnsupportedError(
            "the decoder layers are sharded already, and their forward cannot be tried alone: convert the model first, then apply fully_shard"
        )
    chosen = choose(layers, scheme.halves, adapter)
    instance = [layer.__dict__.get("forward") for layer in layers]  # accelerate's hooks leave one
    own = [functools.partial(type(layer).forward, layer) if at is None else at for layer, at in zip(layers, instance)]  # a bound method would pickle by name
    blocks = [chosen.block(layer, forward) for layer, forward in zip(layers, own)]
    probe(model, layers, blocks, own)
    stack = _stack(_retrofitted(blocks) if retrofit else blocks, scheme, state, start=start, **options)
    made = Conversion(layers, stack, chosen, retrofit, instance)
    reinstall(made)
    return made


def reinstall(made: Conversion) -> None:
    """The steps in the layers' forward, at first and after :func:`uninstall`."""
    for i, layer in enumerate(made.layers):
        layer.forward = LayerStep(made, i)


def uninstall(made: Conversion) -> None:
    """The layers' own forward again."""
    for layer, own in zip(made.layers, made.own):
        del layer.forward
        if own is not None:
            layer.forward = own


def _stack(blocks: Sequence[nn.Module], scheme: Scheme, state: StateFormat, **options: Any) -> ReversibleStack:
    with warnings.catch_warnings():
        if state.exact:
            warnings.simplefilter("ignore", AmplificationWarning)
        return ReversibleStack(blocks, scheme, state, **options)


def _retrofitted(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    return [Retrofit(block, before) for block, before in zip(blocks, [None, *blocks])]
