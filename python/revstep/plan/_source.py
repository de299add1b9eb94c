"""What a memory plan is made for: a transformers config from a file, a folder, a model or the public
architectures known here, and its architecture built without memory.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import read_json, read_start
from .._imports import foreign, require
from .._models.layers import add_lora
from .._values import shown
from ..errors import ConfigError

# ------------------------------------------------------------------------------------------------------------
# Public architectures for worked rows: the values of their config.json that decide about memory.


def _llama3(name: str, hidden: int, layers: int, heads: int, intermediate: int) -> dict[str, Any]:
    return {
        "name": name,
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "intermediate_size": intermediate,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
    }


def _like_llama(
    name: str, kind: str, shape: tuple[int, int, int, int, int, int], **more: Any
) -> dict[str, Any]:
    """``shape``: hidden size, layers, heads, heads of keys and values, intermediate size, vocabulary."""
    hidden, layers, heads, kv, intermediate, vocabulary = shape
    return {
        "name": name,
        "model_type": kind,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
        **more,
    }


_TIED, _LONG = (
    {"tie_word_embeddings": True},
    {"max_position_embeddings": 131072, "tie_word_embeddings": False},
)

#: By the name that ``revstep plan`` knows them by. Sources: the config.json that each was published with; of
#: Llama 3, The Llama 3 Herd of Models, arXiv 2407.21783, table 3. The tests hold the number of parameters
#: against the published one.
PUBLIC = {
    "gpt2": {"name": "GPT-2", "model_type": "gpt2"},
    "llama3-8b": _llama3("Llama-3 8B", 4096, 32, 32, 14336),
    "llama3-70b": _llama3("Llama-3 70B", 8192, 80, 64, 28672),
    "llama3-405b": _llama3("Llama-3 405B", 16384, 126, 128, 53248),
    "llama3.2-1b": _like_llama(
        "Llama-3.2 1B", "llama", (2048, 16, 32, 8, 8192, 128256), head_dim=64, **_TIED
    ),
    "llama3.2-3b": _like_llama(
        "Llama-3.2 3B", "llama", (3072, 28, 24, 8, 8192, 128256), head_dim=128, **_TIED
    ),
    "mistral-7b": _like_llama(
        "Mistral 7B", "mistral", (4096, 32, 32, 8, 14336, 32000), sliding_window=None, **_LONG
    ),
    "qwen2.5-0.5b": _like_llama("Qwen2.5 0.5B", "qwen2", (896, 24, 14, 2, 4864, 151936), **_TIED),
    "qwen2.5-7b": _like_llama("Qwen2.5 7B", "qwen2", (3584, 28, 28, 4, 18944, 152064), **_LONG),
    "smollm2-135m": _like_llama("SmolLM2 135M", "llama", (576, 30, 9, 3, 1536, 49152), **_TIED),
    "smollm2-1.7b": _like_llama("SmolLM2 1.7B", "llama", (2048, 24, 32, 32, 8192, 49152), **_TIED),
    "tinyllama-1.1b": _like_llama("TinyLlama 1.1B", "llama", (2048, 22, 32, 4, 5632, 32000)),
}


def known() -> str:
    """The names, for a sentence."""
    return ", ".join(PUBLIC)


# ------------------------------------------------------------------------------------------------------------
# What is planned for: a transformers config from a file, a folder or a model, and its architecture built
# without memory.

_PURPOSE = "planning a model's memory"
#: A model with more layers would not be planned but mistyped.
MOST_LAYERS = 100_000


@dataclass(frozen=True)
class Source:
    """A model on paper.

    Attributes:
        config: the transformers config.
        name: for tables.
        layers: decoder layers.
        frozen: names of parameters that a given model does not train.
        dtype: dtype of a given model's parameters, None for a config.
    """

    config: Any
    name: str
    layers: int
    frozen: frozenset[str] = frozenset()
    dtype: torch.dtype | None = None


def find_source(model: Any) -> Source:
    """A name of ``PUBLIC``, a path to a config.json, a folder with one or a GGUF file, a dict of a
    config.json's contents, a transformers config, or a transformers model. A name goes before a path.

    Raises:
        ConfigError: none of these; no such file; not JSON; no ``model_type``, or one that transformers does
            not know; no ``num_hidden_layers``; a PEFT model (give the model inside, and
            ``trainable="lora:r=..."``).
    """
    transformers = require("transformers", _PURPOSE, "hf")
    model = PUBLIC.get(model, model) if isinstance(model, str) else model
    if isinstance(model, (str, Path)):
        config, name = _read(Path(model), transformers)
    elif isinstance(model, dict):
        config, name = (
            _from_dict(model, "the given dict", transformers),
            model.get("name", model.get("model_type")),
        )
    elif isinstance(model, transformers.PretrainedConfig):
        config, name = model, model.model_type
    elif isinstance(model, nn.Module) and hasattr(model, "peft_config"):
        raise ConfigError(
            f"got {type(model).__name__}; give the transformers model inside it (get_base_model()) and"
            " trainable='lora:r=...'"
        )
    elif isinstance(model, transformers.PreTrainedModel):
        frozen = frozenset(n for n, p in model.named_parameters() if not p.requires_grad)
        return Source(
            model.config, type(model).__name__, _depth(model.config), frozen, next(model.parameters()).dtype
        )
    else:
        raise ConfigError(
            f"got {type(model).__name__}; expected a path to a config.json or its folder, a name known here,"
            " a transformers config or a transformers model"
        )
    return Source(config, str(name), _depth(config))


def _read(path: Path, transformers: Any) -> tuple[Any, str]:
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ConfigError(
            f"{file} is not there; give a config.json, or a folder with one, as save_pretrained writes it, a"
            f" GGUF file, or a name known here: {known()}; the names are listed by revstep plan --models"
        )
    if read_start(file, 4) == b"GGUF":
        return _from_gguf(file, transformers), file.stem
    try:
        data = read_json(file)
    except ValueError as error:
        raise ConfigError(
            f"{file} is not JSON ({error}); expected the config.json of a transformers model"
        ) from None
    return _from_dict(data, str(file), transformers), (
        file.resolve().parent.name if file.name == "config.json" else file.stem
    )


def _from_gguf(file: Path, transformers: Any) -> Any:
    require("gguf", "reading a GGUF file", "hf")
    expected = "expected a GGUF file that transformers reads, or config.json"
    with foreign(lambda said: ConfigError(f"{file} cannot be read: {said}; {expected}")):
        return transformers.AutoConfig.from_pretrained(file.parent, gguf_file=file.name)


def _from_dict(data: Any, where: str, transformers: Any) -> Any:
    kind = data.get("model_type") if isinstance(data, dict) else None
    if kind is None:
        raise ConfigError(
            f"{where} has no model_type; expected the config.json of a transformers model, for example one"
            " with model_type llama"
        )
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        raise ConfigError(
            f"{where}: architecture {shown(kind)} is unknown to transformers {transformers.__version__};"
            " upgrade"
            " transformers, or give its config class"
        )
    options = {key: value for key, value in data.items() if key not in ("model_type", "name")}
    with foreign(
        lambda said: ConfigError(f"{where} is no config of {kind!r} that transformers takes: {said}")
    ):
        return transformers.CONFIG_MAPPING[kind].from_dict(options)


def _depth(config: Any) -> int:
    layers = getattr(config, "num_hidden_layers", None)
    if isinstance(layers, bool) or not isinstance(layers, int) or not 1 <= layers <= MOST_LAYERS:
        raise ConfigError(
            f"{type(config).__name__} has num_hidden_layers {shown(layers)}; expected a decoder-only language"
            f" model with a number of layers, at most {MOST_LAYERS}"
        )
    return layers


def cut(config: Any, depth: int, dtype: torch.dtype) -> Any:
    """A copy of the config with its first ``depth`` layers; lists of one entry a layer are cut too."""
    short = copy.deepcopy(config)
    full = config.num_hidden_layers
    for key, value in vars(short).items():
        if isinstance(value, (list, tuple)) and len(value) == full:
            setattr(short, key, type(value)(value[:depth]))
    short.num_hidden_layers = depth
    short.dtype = dtype
    short.use_cache = False
    return short


def build(config: Any, depth: int, dtype: torch.dtype, trainable: str, frozen: frozenset[str]) -> nn.Module:
    """The causal language model with ``depth`` layers, in training mode, on the meta device.

    Raises:
        ConfigError: transformers has no causal language model for this config, or refuses it; ``trainable``
            is not known.
    """
    transformers = require("transformers", _PURPOSE, "hf")
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(config) not in known:
        raise ConfigError(
            f"{type(config).__name__} has no causal language model in transformers; expected a decoder such"
            " as LlamaConfig or GPT2Config"
        )
    with foreign(lambda said: ConfigError(f"transformers refuses to build {type(config).__name__}: {said}")):
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(cut(config, depth, dtype), dtype=dtype)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name not in frozen)
    with torch.device("meta"):
        return adapted(model, trainable).train()


def weightless(model: nn.Module) -> nn.Module:
    """Put tensors of the ambient FakeTensorMode, on the CPU, in place of those on the meta device: operations
    then choose the CPU's kernels.
    """
    made: dict[int, torch.Tensor] = {}  # tied weights stay tied
    for module in model.modules():
        for own in (module._parameters, module._buffers):
            for name, t in own.items():
                if t is None:
                    continue
                if id(t) not in made:
                    new = torch.empty(t.shape, dtype=t.dtype, device="cpu")
                    made[id(t)] = (
                        nn.Parameter(new, requires_grad=t.requires_grad) if own is module._parameters else new
                    )
                own[name] = made[id(t)]
    return model


def adapted(model: nn.Module, trainable: str) -> nn.Module:
    """``all``: as it is. ``lora:r=8`` (``lora:r=8,targets=all-linear``): with PEFT's adapters, the rest
    frozen.

    Raises:
        ConfigError: neither of these, or PEFT has no default targets for the architecture.
    """
    if trainable == "all":
        return model
    rank, targets = lora_options(trainable)
    return add_lora(model, rank, targets=targets)


def lora_options(trainable: str) -> tuple[int, str | None]:
    """``lora:r=8,targets=all-linear`` -> (8, "all-linear"); without targets PEFT's own choice for the
    architecture (None).
    """
    name, _, rest = trainable.partition(":") if isinstance(trainable, str) else ("", "", "")
    options = dict(part.partition("=")[::2] for part in rest.split(",") if part)
    rank = options.pop("r", "8")
    targets = options.pop("targets", None)
    if (
        name != "lora"
        or options
        or not rank.isdigit()
        or int(rank) < 1
        or targets not in (None, "all-linear")
    ):
        raise ConfigError(
            f"trainable is {trainable!r}, expected 'all', 'lora:r=8' or 'lora:r=8,targets=all-linear'"
        )
    return int(rank), targets
