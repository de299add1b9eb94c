"""The models by their shapes: ``make_model(config, scheme)``. The parts of the GPT are importable from here too."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from .gpt import GPT, MLP, Attention, Block
from .language_model import LanguageModel
from .llama import Llama
from .shapes import GPTConfig, LlamaConfig, ModelConfig
from .trunk import ResidualStack, make_trunk

__all__ = [
    "GPT", "MLP", "Attention", "Block", "GPTConfig", "LanguageModel", "Llama", "LlamaConfig", "ResidualStack", "make_model", "make_trunk",
]  # fmt: skip

_MODELS: dict[type[ModelConfig], type[LanguageModel]] = {GPTConfig: GPT, LlamaConfig: Llama}


def make_model(config: ModelConfig, scheme: Any = "plain", **options: Any) -> LanguageModel:
    """The model whose shape ``config`` is; ``scheme`` and ``options`` as in ``LanguageModel``.

    Raises:
        ConfigError: ``config`` is not the shape of a model; as ``LanguageModel``.
    """
    if type(config) not in _MODELS:
        raise ConfigError(f"config is {type(config).__name__}; expected one of {', '.join(kind.__name__ for kind in _MODELS)}")
    return _MODELS[type(config)](config, scheme, **options)
