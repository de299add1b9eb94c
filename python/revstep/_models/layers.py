"""The parts of a transformers model that others work on: its decoder layers, its vocabulary head, and the
LoRA adapters that peft adds to it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from .._imports import require
from ..errors import ConfigError, UnsupportedError

__all__ = [
    "SOFTCAP", "add_lora", "check_lora", "decoder_layers", "hooked", "merge_lora", "plain_head",
    "transformer", "unwrapped",
]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------
# Where a model keeps its decoder layers.


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside a peft model; any other model itself."""
    base = getattr(model, "get_base_model", None)
    return base() if callable(base) else model


def decoder_layers(model: nn.Module) -> tuple[str, list[nn.Module]]:
    """(name, layers) of the decoder layers that the model runs one after the other.

    Raises:
        ConfigError: not a transformers model. UnsupportedError: an encoder-decoder, no such list, several, or
            layers left out.
    """
    transformers = require("transformers", "converting a Hugging Face model", "hf")
    inner = unwrapped(model)
    if not isinstance(inner, transformers.PreTrainedModel):
        raise ConfigError(
            f"got {type(model).__name__}, expected a transformers model (PreTrainedModel) or a peft model"
            " around one"
        )
    text = inner.config.get_text_config()
    lists = [(name, list(m)) for name, m in inner.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    found = [(name, layers) for name, layers in lists if all(_is_layer(inner, x) for x in layers)]
    found = found or _alike(lists, _depths(text))
    if not found:
        raise UnsupportedError(
            f"{type(inner).__name__} has no nn.ModuleList of decoder layers: looked for subclasses of"
            f" transformers' GradientCheckpointingLayer, for the classes {sorted(_layer_names(inner))} of"
            " _no_split_modules, and for a list of modules of one class as long as the config says"
            f" ({', '.join(map(str, sorted(_depths(text)))) or 'it does not say'})"
        )
    both = getattr(inner.config, "is_encoder_decoder", False)  # an encoder alone has the config of both
    if both and len(found) > 1:
        raise UnsupportedError(
            f"{type(inner).__name__} is an encoder-decoder: its decoder layers also read the encoder, and two"
            " stacks would have to be rebuilt"
        )
    if len(found) > 1:
        found = _of_the_text(inner, found, _depths(text))
    if len(found) > 1:
        names = ", ".join(f"{name} ({len(layers)} {type(layers[0]).__name__})" for name, layers in found)
        raise UnsupportedError(
            f"{type(inner).__name__} has several lists of layers, {names}: one stack of decoder layers is"
            " expected"
        )
    for drop in ("layerdrop", "decoder_layerdrop", *(("encoder_layerdrop",) if both else ())):
        if getattr(text, drop, None):
            found_on = f"config.{drop} is {getattr(text, drop)}"
            what = f"the model leaves layers out at random while it trains; load it with {drop}=0.0"
            raise UnsupportedError(f"{found_on}: {what}")
    name, layers = found[0]
    holder = inner.get_submodule(name.rpartition(".")[0])  # a tower of images has a config of its own
    depths = _depths(text) | _depths(getattr(holder, "config", text))
    if depths and len(layers) not in depths:
        used = getattr(text, "num_hidden_layers", max(depths))
        raise UnsupportedError(
            f"{name} holds {len(layers)} layers, config.num_hidden_layers says {used}: the model would leave"
            " some of them out"
        )
    return name, layers  # whether the model runs each of them is seen when it is tried


#: What configs call the number of layers. Of a decoder beside an encoder, or with two attentions in a layer,
#: it is another one than num_hidden_layers.
_DEPTHS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "num_decoder_layers")


def _depths(config: Any) -> set[int]:
    """Every number of layers that this config names."""
    found = {getattr(config, name, None) for name in _DEPTHS}
    return {depth for depth in found if isinstance(depth, int) and depth > 0}


def _alike(lists: list[tuple[str, list[nn.Module]]], depths: set[int]) -> list[tuple[str, list[nn.Module]]]:
    """Lists of modules of one class, as long as the config says, that are in no other such list."""
    found = [(name, m) for name, m in lists if len(m) in depths and len({type(x) for x in m}) == 1]
    inside = {id(part) for _, m in found for layer in m for part in layer.modules() if part is not layer}
    return [(name, m) for name, m in found if id(m[0]) not in inside]


def _of_the_text(
    model: nn.Module, found: list[tuple[str, list[nn.Module]]], depths: set[int]
) -> list[tuple[str, list[nn.Module]]]:
    """Those of the lists that the model's decoder of text holds: of several, those it holds itself."""
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = {id(m) for m in decoder.modules()}
    found = [(name, m) for name, m in found if len(m) in depths and id(m[0]) in inside] or found
    held = {id(m[0]) for m in decoder.children() if isinstance(m, nn.ModuleList) and len(m)}
    return [(name, layers) for name, layers in found if id(layers[0]) in held] or found


def _layer_names(model: nn.Module) -> set[str]:
    return set(getattr(model, "_no_split_modules", None) or ())


def _is_layer(model: nn.Module, module: nn.Module) -> bool:
    layer = require(
        "transformers.modeling_layers", "converting a Hugging Face model", "hf"
    ).GradientCheckpointingLayer
    return isinstance(module, layer) or type(module).__name__ in _layer_names(model)


# ---- The vocabulary head of a transformers model ----

#: The config entry of Gemma 2 and others whose logits pass a tanh on their way to the loss.
SOFTCAP = "final_logit_softcapping"


def transformer(model: nn.Module) -> nn.Module:
    """The transformers model itself: a peft model forwards attributes but not assignments."""
    base = unwrapped(model)
    if not isinstance(base, require("transformers", "chunk_loss", "hf").PreTrainedModel):
        raise ConfigError(
            f"got {type(base).__name__}; expected a transformers model with a language-model head: load one"
            " with AutoModelForCausalLM"
        )
    return base


def plain_head(model: nn.Module) -> nn.Linear:
    """The vocabulary head of ``model``, where the loss in chunks can take it; nothing is run.

    Raises:
        UnsupportedError: it is not a plain linear layer.
    """
    base = transformer(model)
    name = type(base).__name__
    head = base.get_output_embeddings()
    if head is None:
        raise UnsupportedError(
            f"{name} has no output embeddings (get_output_embeddings() is None); expected a language-model"
            " head: load it as *ForCausalLM"
        )
    if type(head).__name__ == "TrainableTokensWrapper":
        raise UnsupportedError(
            f"the head of {name} is peft's {type(head).__name__}, because trainable_token_indices reach a "
            "head that is tied to the embeddings; expected torch.nn.Linear: train with all logits"
        )
    if type(head).forward is not nn.Linear.forward or not head.weight.is_floating_point():
        raise UnsupportedError(
            f"the head of {name} is {type(head).__module__}.{type(head).__name__}; expected torch.nn.Linear:"
            " merge its adapter or leave lm_head out of target_modules and modules_to_save, and do not"
            " quantise it"
        )
    if "forward" in head.__dict__ and not hooked(head):
        raise UnsupportedError(
            f"the head of {name} has a forward of its own on the instance; expected the class's, or an"
            " accelerate hook: remove it first"
        )
    return head


def hooked(head: nn.Module) -> bool:
    """Does accelerate stand before this module's forward?"""
    return "_hf_hook" in head.__dict__ and "_old_forward" in head.__dict__


# ------------------------------------------------------------------------------------------------------------
# Adapters of low rank by peft: what would be refused is refused before anything long is computed.

#: Module names that a refusal lists at most.
_LISTED = 12


def add_lora(
    model: nn.Module, rank: int, alpha: float | None = None, targets: str | None = None
) -> nn.Module:
    """A peft model around ``model``: LoRA adapters of this rank train, everything else is frozen.

    Args:
        model: a transformers model, converted or plain.
        rank: of the adapters.
        alpha: scale times rank; None: twice the rank.
        targets: names of modules, by commas, or "all-linear"; None: peft's own for this architecture.

    Raises:
        ConfigError: a rank below 1, targets that peft does not know or find, be it one of several, or one
            that shares its matrix with another module (embedding and head).
    """
    if rank < 1:
        raise ConfigError(f"the rank of LoRA is {rank}, expected a whole number of at least 1")
    peft = require("peft", "LoRA", "hf")
    shared = _shared(model)
    training = [p for p in unwrapped(model).parameters() if p.requires_grad]
    names = None if targets is None else _names(model, targets)
    try:
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,
            target_modules=names,
            task_type="CAUSAL_LM",
        )
        with warnings.catch_warnings():
            # peft sets it for GPT-2's Conv1D, as it says
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
            made = peft.get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(
            f"peft finds no place for adapters: {str(error).rstrip('.')}; expected module names of this"
            f" model, such as {_listed(_linear(model))}, or all-linear"
        ) from error
    for name, module in unwrapped(made).named_modules():
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer) and name in shared:
            made.unload()
            for p in training:
                p.requires_grad_()
            raise ConfigError(
                f"{name} shares its matrix with {shared[name]}, and adapters on one of them would be merged"
                f" into both, which is another model than was trained; expected other targets, such as"
                f" {_listed(_linear(model))}, or all-linear"
            )
    return made


def check_lora(
    model: nn.Module, rank: int, alpha: float | None = None, targets: str | None = None, chunked: bool = False
) -> None:
    """Raises what :func:`add_lora` would, without touching ``model``.

    It is tried on a copy without weights, so this takes no memory and can come before a calibration.

    Args:
        model: a transformers model.
        rank, alpha, targets: as :func:`add_lora` takes them.
        chunked: the loss will have chunks, which an adapter on the head would prevent.

    Raises:
        ConfigError: targets that are not there. UnsupportedError: a head that the loss in chunks cannot use.
    """
    inner = unwrapped(model)
    with torch.device("meta"):
        bare = type(inner)(copy.deepcopy(inner.config))
        adapted = add_lora(bare, rank, alpha, targets)
    if chunked:
        plain_head(adapted)


def merge_lora(model: nn.Module) -> nn.Module:
    """The model with its adapters added into its weights, still converted where it was."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def _shared(model: nn.Module) -> dict[str, str]:
    """Modules whose matrix is another one's too, with that one's name."""
    holders: dict[int, list[str]] = {}
    for name, module in unwrapped(model).named_modules():
        if isinstance(module, _WITH_MATRIX):
            holders.setdefault(id(module.weight), []).append(name)
    several = [names for names in holders.values() if len(names) > 1]
    return {name: names[name == names[0]] for names in several for name in names}


#: What peft puts adapters on, and models tie.
_WITH_MATRIX = (nn.Linear, nn.Embedding)


def _names(model: nn.Module, targets: str) -> str | list[str]:
    """``targets`` as peft takes them. peft is content when it finds one of several; here all have to be."""
    if targets == "all-linear":
        return targets
    names = [name.strip() for name in targets.split(",") if name.strip()]
    modules = [name for name, _ in unwrapped(model).named_modules()]
    unknown = [name for name in names if not any(m == name or m.endswith(f".{name}") for m in modules)]
    if unknown or not names:
        got = f"the targets are {targets!r}"
        if unknown:
            got = f"no module of this model is called {unknown[0]!r}"
        expected = f"names such as {_listed(_linear(model))}, or all-linear"
        raise ConfigError(f"peft finds no place for adapters: {got}; expected {expected}")
    return names


def _linear(model: nn.Module) -> list[str]:
    """Last parts of the names of the model's linear layers, each once, without its head."""
    inner = unwrapped(model)
    head = inner.get_output_embeddings()
    inside = ((name, module) for name, module in inner.named_modules() if module is not head)
    found = (name for name, module in inside if type(module).__name__ in ("Linear", "Conv1D"))
    return list(dict.fromkeys(name.rpartition(".")[2] for name in found))


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
