"""Model folders on this machine, as ``save_pretrained`` writes them: a model and its tokenizer, each error in
one sentence.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import nn

from .._imports import require
from ..errors import ConfigError
from . import _settings
from ._convert import from_pretrained
from ._whole import ADAPTER, cause, load_whole

__all__ = ["converted", "load_model", "load_tokenizer"]


def converted(path: str | os.PathLike) -> bool:
    """Was the model in this folder saved converted?

    Raises:
        ConfigError: no such folder, or no model in it.
    """
    return getattr(_config(path), _settings.KEY, None) is not None


def load_model(path: str | os.PathLike, *, plain: bool = False, **options: Any) -> nn.Module:
    """The causal language model of a folder: converted as it was saved, or, with ``plain`` or where it was
    not converted, the class's own.

    ``options`` go to ``AutoModelForCausalLM.from_pretrained``. In evaluation mode.

    Raises:
        ConfigError: no such folder, no config.json, an architecture that has no causal language model,
            weights that cannot be read, or tensors that are missing, unexpected or of another shape.
    """
    transformers = require("transformers", "loading a Hugging Face model", "hf")
    config = _config(path)
    try:
        if not plain and getattr(config, _settings.KEY, None) is not None:
            model = from_pretrained(path, **options)
            if model.get_output_embeddings() is None:
                raise ConfigError(
                    f"{path} holds a {type(model).__name__}, which has no vocabulary head; expected a "
                    "causal language model: load this one with revstep.hf.from_pretrained"
                )
            return model.eval()
        model = load_whole(transformers.AutoModelForCausalLM, path, **options)
    except ConfigError:
        raise
    except (OSError, ValueError) as error:
        found = f"cannot load a causal language model from {path}: {cause(error)}"
        raise ConfigError(f"{found}; expected a folder that save_pretrained wrote") from error
    _settings.remove(model)  # it is plain now, and would be saved as converted
    return model.eval()


def load_tokenizer(path: str | os.PathLike) -> Any:
    """The tokenizer of a folder.

    Raises:
        ConfigError: no such folder, or no tokenizer in it.
    """
    transformers = require("transformers", "loading a tokenizer", "hf")
    _folder(path)
    if not any((Path(path) / name).is_file() for name in _TOKENIZER_FILES):
        raise ConfigError(
            f"{path} has no tokenizer; expected one of {', '.join(_TOKENIZER_FILES)}: save it there with"
            " tokenizer.save_pretrained"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        found = f"cannot load the tokenizer of {path}: {cause(error)}"
        raise ConfigError(f"{found}; save it there with tokenizer.save_pretrained") from error


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def _folder(path: str | os.PathLike) -> None:
    # Asked first: transformers would look a name that is no folder up on the network.
    if not Path(path).is_dir():
        raise ConfigError(
            f"no folder {path}; expected one that save_pretrained wrote (config.json, weights, tokenizer);"
            " nothing is downloaded"
        )


def _config(path: str | os.PathLike) -> Any:
    _folder(path)
    if (Path(path) / ADAPTER).is_file():
        instead = "load it with revstep.hf.from_pretrained, and save what its merge_and_unload() returns"
        found = f"{path} holds peft adapters"
        raise ConfigError(f"{found}; expected a model that save_pretrained wrote: {instead}")
    if not (Path(path) / "config.json").is_file():
        raise ConfigError(f"{path} has no config.json; expected a folder that save_pretrained wrote")
    try:
        return require("transformers", "loading a Hugging Face model", "hf").AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path}/config.json is not a model's: {cause(error)}") from error
