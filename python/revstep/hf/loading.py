"""``save_pretrained`` is transformers' own; this is the way back to a converted model."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import ConfigError
from ..extras import require
from . import settings
from .adapters import Adapter
from .converting import convert
from .whole import ADAPTER, cause, load_whole, refuse_incomplete

#: Options of ``from_pretrained`` that say where a folder is: its config is read with them too.
_WHERE = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

#: Files of a model's weights; those of adapters have other names.
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin")


def from_pretrained(
    path: str | os.PathLike, *, adapter: Adapter | None = None, base: str | os.PathLike | None = None,
    model_class: type | None = None, **options: Any,
) -> nn.Module:  # fmt: skip
    """A model saved by ``save_pretrained`` from a converted one, converted as it was.

    Its class is the one that config.json names under ``architectures``; the class's own ``from_pretrained``
    loads the same folder as the plain model. Of a folder of peft adapters (adapter_config.json) the base
    model is loaded with the adapters around it. No tensor is made up: one that is missing is an error.

    peft writes no config.json, so the reversible settings are the base folder's; where the base was converted
    in memory, ``model.config.save_pretrained(folder)`` puts them beside the adapters.

    Args:
        path: the folder, or a name on the hub.
        adapter: the one that the model was converted with, where it is not one of the package's (the folder
            holds only its name).
        base: folder of the base model of peft adapters, where it is not the one that adapter_config.json
            names.
        model_class: the class to load, where it is not one of transformers'.
        options: of the class's ``from_pretrained``. With adapters they go to the base model, but for
            ``is_trainable=True``, which goes on training the adapters.

    Raises:
        ConfigError: the folder holds a plain model, or one converted with an adapter that is not known; its
            class is not known; tensors are missing, unexpected or of another shape.
    """
    transformers = require("transformers", "loading a Hugging Face model", "hf")
    if (Path(path) / ADAPTER).is_file():
        return _with_adapters(transformers, path, base, adapter, model_class, options)
    if base is not None:
        found = f"{path} has no {ADAPTER}"
        raise ConfigError(f"{found}; expected a folder of peft adapters, or no base: leave base= out")
    config = _config(transformers, path, options)
    stored = settings.read(config)
    model = load_whole(model_class or _class(transformers, config), path, **options)
    settings.remove(model)
    return _converted(model, stored, adapter)


def _converted(model: nn.Module, stored: dict[str, Any], adapter: Adapter | None) -> nn.Module:
    return convert(model, **stored | ({} if adapter is None else {"adapter": adapter}), say=None)


def _config(transformers: Any, path: str | os.PathLike, options: dict[str, Any]) -> Any:
    where = {name: options[name] for name in (*_WHERE, "trust_remote_code") if name in options}
    return transformers.AutoConfig.from_pretrained(path, **where)


def _class(transformers: Any, config: Any) -> Any:
    """What the folder was saved from: it may have a head for classification, or read images and text."""
    names = getattr(config, "architectures", None) or ()
    found = [getattr(transformers, name, None) for name in names]
    base = transformers.PreTrainedModel
    models = [kind for kind in found if isinstance(kind, type) and issubclass(kind, base)]
    if models:
        return models[0]
    for auto, where in (getattr(config, "auto_map", None) or {}).items():  # code that lies in the folder
        if isinstance(where, str) and where.rpartition(".")[2] in names and hasattr(transformers, auto):
            return getattr(transformers, auto)
    if names:
        raise ConfigError(
            f"config.json names the class {names[0]}, which transformers does not have; expected one of its "
            f"own: pass the class itself, from_pretrained(..., model_class={names[0]})"
        )
    return transformers.AutoModelForCausalLM


def _with_adapters(
    transformers: Any, path: str | os.PathLike, base: Any, adapter: Adapter | None, model_class: type | None,
    options: dict[str, Any],
) -> nn.Module:  # fmt: skip
    """The base model of a folder of peft adapters, with the adapters around it, converted."""
    peft = require("peft", "loading adapters", "hf")
    both = sorted(file.name for pattern in _WEIGHTS for file in Path(path).glob(pattern))
    if both:
        found = f"{path} holds peft adapters ({ADAPTER}) and a model ({both[0]})"
        raise ConfigError(f"{found}; expected one of them: move the other into a folder of its own")
    tuned = peft.PeftConfig.from_pretrained(path)
    base = tuned.base_model_name_or_path if base is None else base
    if not base:
        raise ConfigError(f"{path}/{ADAPTER} names no base model; expected its folder: pass base=")
    trainable = options.pop("is_trainable", False)
    try:
        config = _config(transformers, base, options)
    except OSError as error:
        found = f"the base model of the adapters in {path} is {base}, which cannot be read ({cause(error)})"
        raise ConfigError(f"{found}; expected its folder: pass base=") from error
    beside = _config(transformers, path, {}) if (Path(path) / "config.json").is_file() else config
    source = beside if hasattr(beside, settings.KEY) else config
    if not hasattr(source, settings.KEY):
        raise ConfigError(
            f"neither {path}, a folder of peft adapters, nor its base model {base} has reversible settings, "
            "and peft does not save them: call model.config.save_pretrained(folder) beside "
            "model.save_pretrained(folder), or load the adapters with peft and call revstep.hf.convert"
        )
    stored = settings.read(source)
    model = load_whole(model_class or _class(transformers, config), base, **options)
    settings.remove(model)
    return _converted(_wrapped(peft, model, path, tuned, trainable), stored, adapter)


def _wrapped(peft: Any, model: nn.Module, path: str | os.PathLike, tuned: Any, trainable: bool) -> nn.Module:
    """The peft model of these adapters; refused unless the folder holds every tensor of them."""
    kind = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.get(tuned.task_type, peft.PeftModel)
    what = f"the {tuned.peft_type.value} adapters of a {type(model).__name__} as its {ADAPTER} describes them"
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            made = kind.from_pretrained(model, path, "default", is_trainable=trainable)
        found = made.load_adapter(path, "default", is_trainable=trainable)  # again: this one tells
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} does not hold {what}: {str(error).strip()}") from error
    # peft knows which keys are shared and only seem to be missing, and reads prompts apart from the others.
    lacking = any("missing adapter keys" in str(warning.message) for warning in said)
    unexpected = [name for name in found.unexpected_keys if name != "prompt_embeddings"]
    refuse_incomplete(path, what, found.missing_keys if lacking else (), unexpected, {})
    return made
