"""Where a model keeps its decoder layers."""

from __future__ import annotations

from torch import nn

from ..errors import ConfigError, UnsupportedError
from ..extras import require


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft model; any other model itself."""
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model


def decoder_layers(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """(name, layers) of the decoder layers that the model runs one after the other.

    Raises:
        ConfigError: not a transformers model. UnsupportedError: an encoder-decoder, no such list, several, or layers left out.
    """
    transformers = require("transformers", "converting a Hugging Face model", "hf")
    inner = unwrapped(model)
    if not isinstance(inner, transformers.PreTrainedModel):
        raise ConfigError(f"got {type(model).__name__}, expected a transformers model (PreTrainedModel) or a peft model around one")
    if getattr(inner.config, "is_encoder_decoder", False):
        raise UnsupportedError(
            f"{type(inner).__name__} is an encoder-decoder: its decoder layers also read the encoder, and two stacks would have to be rebuilt"
        )
    found = [(name, list(m)) for name, m in inner.named_modules() if isinstance(m, nn.ModuleList) and len(m) and all(_is_layer(inner, x) for x in m)]
    if not found:
        raise UnsupportedError(
            f"{type(inner).__name__} has no nn.ModuleList of decoder layers: looked for subclasses of transformers' GradientCheckpointingLayer "
            f"and for the classes {sorted(_layer_names(inner))} of _no_split_modules"
        )
    if len(found) > 1:
        text = getattr(inner.config.get_text_config(), "num_hidden_layers", None)
        decoder = inner.get_decoder() if hasattr(inner, "get_decoder") else inner
        inside = {id(m) for m in decoder.modules()}
        found = [(name, layers) for name, layers in found if len(layers) == text and id(layers[0]) in inside] or found
    if len(found) > 1:
        names = ", ".join(f"{name} ({len(layers)} {type(layers[0]).__name__})" for name, layers in found)
        raise UnsupportedError(f"{type(inner).__name__} has several lists of layers, {names}: one stack of decoder layers is expected")
    drop = getattr(inner.config.get_text_config(), "layerdrop", None)
    if drop:
        raise UnsupportedError(f"config.layerdrop is {drop}: the model leaves layers out at random while it trains; load it with layerdrop=0.0")
    name, layers = found[0]
    used = getattr(inner.config.get_text_config(), "num_hidden_layers", len(layers))
    if used != len(layers):
        raise UnsupportedError(f"{name} holds {len(layers)} layers, config.num_hidden_layers says {used}: the model would leave some of them out")
    return name, layers


def _layer_names(model: nn.Module) -> set[str]:
    return set(getattr(model, "_no_split_modules", None) or ())


def _is_layer(model: nn.Module, module: nn.Module) -> bool:
    layer = require("transformers.modeling_layers", "converting a Hugging Face model", "hf").GradientCheckpointingLayer
    return isinstance(module, layer) or type(module).__name__ in _layer_names(model)
