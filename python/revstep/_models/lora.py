"""Adapters of low rank by peft: what would be refused is refused before anything long is computed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from torch import nn

from .._imports import require
from ..errors import ConfigError
from .layers import plain_head, unwrapped

__all__ = ["add_lora", "check_lora", "merge_lora"]

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
        ConfigError: a rank below 1, or targets that peft does not know or find, be it one of several.
    """
    if rank < 1:
        raise ConfigError(f"the rank of LoRA is {rank}, expected a whole number of at least 1")
    peft = require("peft", "LoRA", "hf")
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
            return peft.get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(
            f"peft finds no place for adapters: {str(error).rstrip('.')}; expected module names of this"
            f" model, such as {_listed(_linear(model))}, or all-linear"
        ) from error


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
