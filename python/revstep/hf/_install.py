"""Putting a stack behind a model's decoder layers, and taking it away."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

from torch import nn

from .._models.layers import decoder_layers, unwrapped
from .._options import StackOptions
from ..errors import AmplificationWarning, ConfigError, UnsupportedError
from ..stack import ReversibleStack
from ..stack._members import ungathered
from ._forwards import LayerStep, LoopStep, OwnForward, ours, plain
from ._layer_steps import Conversion
from ._probe import hold, probe, refuse_without_gradient
from ._tokenwise import Candidates, undeclare
from .adapters import Adapter, choose


def conversions(model: nn.Module) -> list[Conversion]:
    """All conversions of which anything is in this module: those of loops first, then of mere layers."""
    found = [forward for module in model.modules() for _, forward in ours(module, (LoopStep, LayerStep))]
    found.sort(key=lambda forward: isinstance(forward, LayerStep))
    return list({id(forward.conversion): forward.conversion for forward in found}.values())


def conversion(model: nn.Module) -> Conversion | None:
    """The :class:`Conversion` of a converted model, or None: stack, scheme, state, the last report.

    Raises:
        ConfigError: the module holds several converted models.
    """
    found = conversions(model)
    inside = set(map(id, model.modules()))
    found = [made for made in found if id(made.loop) in inside] or found
    if len(found) > 1:
        names = " and ".join(type(made.loop).__name__ for made in found)
        what = f"this {type(model).__name__} holds {len(found)} converted models, in {names}; expected one"
        raise ConfigError(f"{what}: ask conversion(...) of each")
    return found[0] if found else None


def install(model: nn.Module, options: StackOptions, adapter: str | Adapter | None = None) -> Conversion:
    """Replace the decoder layers' forward by steps of a stack; nothing else of the model changes."""
    for module in model.modules():  # a layer that came out of another converted model by pickle
        plain(module, OwnForward)
    where, layers = decoder_layers(model)
    parent, _, name = where.rpartition(".")
    loop = unwrapped(model).get_submodule(parent)
    if any(map(ungathered, layers)):
        raise UnsupportedError(
            "the decoder layers are sharded already, and their forward cannot be tried alone: convert the"
            " model first, then apply fully_shard"
        )
    refuse_without_gradient(layers)
    chosen = choose(layers, options.scheme.halves, adapter)
    instance = [layer.__dict__.get("forward") for layer in layers]  # accelerate's hooks leave one
    # A bound method would pickle by name.
    own = [
        functools.partial(type(layer).forward, layer) if at is None else at
        for layer, at in zip(layers, instance)
    ]
    blocks = [chosen.block(layer, forward) for layer, forward in zip(layers, own)]
    candidates = Candidates(layers if options.tile else ())
    with candidates.watched():
        returns = probe(model, loop, layers, blocks, own)
    tokenwise = candidates.declare() if options.tile else []
    try:
        stack = _stack(blocks, options)
    except BaseException:
        undeclare(tokenwise)
        raise
    made = Conversion(layers, stack, chosen, instance, loop, name, returns)
    made.tokenwise = tokenwise
    made.attach()
    hold(unwrapped(model).modules())  # for good: a repacked 4-bit weight would end all training unseen
    return made


def _stack(blocks: Sequence[nn.Module], options: StackOptions) -> ReversibleStack:
    with warnings.catch_warnings():
        if options.state.exact:
            warnings.simplefilter("ignore", AmplificationWarning)
        return ReversibleStack(blocks, options)
