"""``save_pretrained`` is transformers' own; this is the way back to a converted model."""

from __future__ import annotations

import os
from typing import Any

from torch import nn

from ..extras import require
from . import settings
from .adapters import Adapter
from .converting import convert


def from_pretrained(path: str | os.PathLike, *, adapter: Adapter | None = None, **options: Any) -> nn.Module:
    """A model saved by ``save_pretrained`` from a converted one, converted as it was.

    Its class is the one that the config names, else ``AutoModelForCausalLM``; the class's own
    ``from_pretrained`` loads the same folder as the plain model. ``options`` go to it. ``adapter``: the one
    that the model was converted with, where it is not one of the package's (the folder holds only its name).

    Raises:
        ConfigError: the folder holds a plain model, or one converted with an adapter that is not known.
    """
    transformers = require("transformers", "loading a Hugging Face model", "hf")
    config = transformers.AutoConfig.from_pretrained(path)
    stored = settings.read(config)
    model = _class(transformers, config).from_pretrained(path, **options)
    settings.remove(model)
    if adapter is not None:
        stored["adapter"] = adapter
    return convert(model, **stored, say=None)


def _class(transformers: Any, config: Any) -> Any:
    """What the folder was saved from: it may have a head for classification, or read images and text."""
    names = getattr(config, "architectures", None) or ()
    found = [getattr(transformers, name, None) for name in names]
    base = transformers.PreTrainedModel
    models = [kind for kind in found if isinstance(kind, type) and issubclass(kind, base)]
    return models[0] if models else transformers.AutoModelForCausalLM
