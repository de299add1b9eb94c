"""Weights of a Trainer's checkpoint, all of them, into a model that goes on training.

transformers' Trainer reads them with ``strict=False``. What a checkpoint lacks keeps the value it had before
training and a warning is all that is said; so do the experts of a model whose tensors ``save_pretrained``
writes under other names than the model has, such as Mixtral's.
"""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from ..errors import ConfigError
from ..extras import require
from ..models.layers import unwrapped
from .whole import cause, load_whole, refuse_incomplete

__all__ = ["load_checkpoint"]

#: As peft names the weights of adapters in a folder.
_ADAPTERS = "adapter_model.safetensors"


def load_checkpoint(model: nn.Module, path: str | os.PathLike) -> None:
    """Put the weights of ``path``, a checkpoint-N folder, into ``model``, in place.

    Args:
        model: as it was when the checkpoint was written: the same class, or a peft model with the same adapters.
        path: the folder. What else it holds, of optimiser and schedule, the Trainer reads.

    Raises:
        ConfigError: tensors are missing, unexpected or of another shape, or a file is absent or damaged;
            the model is as it was.
    """
    inner = unwrapped(model)
    if inner is not model and hasattr(model, "peft_config"):
        _refuse_other_adapters(model, Path(path))  # the Trainer loads these right
        return
    try:
        whole = load_whole(type(inner), path, dtype=inner.dtype)
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        found = f"cannot read the weights of {path}: {cause(error)}"
        raise ConfigError(f"{found}; remove the folder, and go on from the checkpoint before it") from error
    inner.load_state_dict(whole.state_dict())


def _refuse_other_adapters(model: nn.Module, path: Path) -> None:
    peft, safetensors = (require(name, "resuming", "hf") for name in ("peft", "safetensors"))
    expected = {name: list(tensor.shape) for name, tensor in peft.get_peft_model_state_dict(model).items()}
    try:
        with safetensors.safe_open(path / _ADAPTERS, "pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}
    except (OSError, safetensors.SafetensorError) as error:
        what = f"cannot read {path / _ADAPTERS}: {cause(error)}"
        raise ConfigError(f"{what}; remove the folder, and go on from the checkpoint before it") from error
    refuse_incomplete(
        path,
        "those of the adapters that were trained",
        expected.keys() - found.keys(),
        found.keys() - expected.keys(),
        {name: (found[name], shape) for name, shape in expected.items() if found.get(name, shape) != shape},
    )
