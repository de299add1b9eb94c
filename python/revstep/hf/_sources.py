"""Pretrained models and tokenizers, loaded by what a user calls them: a folder that save_pretrained wrote, a
GGUF file, or a name on the hub. Each error is one sentence.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._files import refuse_irregular
from .._imports import cause, foreign, require
from .._values import shown
from ..errors import ConfigError
from . import _settings
from ._convert import from_pretrained
from ._whole import ADAPTER, load_whole, refuse_loading

__all__ = ["cache_folder", "converted", "load", "load_model", "load_tokenizer", "locate", "sha256"]


# ------------------------------------------------------------------------------------------------------------
# Model folders on this machine, as ``save_pretrained`` writes them: a model and its tokenizer, each error in
# one sentence.


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
    _refuse_more_layers_than_tensors(path, config)
    expected = "expected a folder that save_pretrained wrote"
    with foreign(
        lambda said: ConfigError(f"cannot load a causal language model from {path}: {said}; {expected}")
    ):
        if not plain and getattr(config, _settings.KEY, None) is not None:
            model = from_pretrained(path, **options)
            if model.get_output_embeddings() is None:
                raise ConfigError(
                    f"{path} holds a {type(model).__name__}, which has no vocabulary head; expected a "
                    "causal language model: load this one with revstep.hf.from_pretrained"
                )
            return model.eval()
        model = load_whole(transformers.AutoModelForCausalLM, path, **options)
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
    again = "save it there with tokenizer.save_pretrained"
    with foreign(lambda said: ConfigError(f"cannot load the tokenizer of {path}: {said}; {again}")):
        return transformers.AutoTokenizer.from_pretrained(path)


_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def _folder(path: str | os.PathLike) -> None:
    # Asked first: transformers would look a name that is no folder up on the network.
    if not Path(path).is_dir():
        raise ConfigError(
            f"no folder {path}; expected one that save_pretrained wrote (config.json, weights, tokenizer);"
            " nothing is downloaded"
        )
    try:
        refuse_irregular(path)
    except OSError as error:
        raise ConfigError(f"cannot read the folder {path}: {error}") from error


def _config(path: str | os.PathLike) -> Any:
    _folder(path)
    if (Path(path) / ADAPTER).is_file():
        instead = "load it with revstep.hf.from_pretrained, and save what its merge_and_unload() returns"
        found = f"{path} holds peft adapters"
        raise ConfigError(f"{found}; expected a model that save_pretrained wrote: {instead}")
    if not (Path(path) / "config.json").is_file():
        raise ConfigError(f"{path} has no config.json; expected a folder that save_pretrained wrote")
    with foreign(lambda said: ConfigError(f"{path}/config.json is not a model's: {said}")):
        return require("transformers", "loading a Hugging Face model", "hf").AutoConfig.from_pretrained(path)


def _refuse_more_layers_than_tensors(path: str | os.PathLike, config: Any) -> None:
    """A config that promises more layers than its weights have tensors would take all memory before anything
    is read from the weights. Raises ConfigError.
    """
    layers = getattr(config.get_text_config(), "num_hidden_layers", None)
    if not isinstance(layers, int) or layers < 1000:
        return
    with foreign(lambda said: ConfigError(f"a weight file of {path} cannot be read: {said}")):
        tensors = 0
        for file in Path(path).glob("*.safetensors"):
            with require("safetensors", "reading a model's weights", "hf").safe_open(file, "pt") as opened:
                tensors += len(opened.keys())
    if tensors < layers:
        raise ConfigError(
            f"{path}/config.json has num_hidden_layers {shown(layers)}, and its weights have {tensors}"
            " tensors:"
            " the folder is damaged, get it again"
        )


# ------------------------------------------------------------------------------------------------------------
# A model by what a user calls it: a folder, a GGUF file, a name on the hub; each error in one sentence.

EXPECTED = "expected a folder that save_pretrained wrote, a GGUF file, or a name on the hub (owner/name)"
#: What a model's folder on the hub is loaded from; other frameworks' weights stay there.
_HUB_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_MAGIC = b"GGUF"


def cache_folder() -> Path:
    """Where what takes long to make is kept: ``$REVSTEP_CACHE``, else ``revstep`` in the user's cache."""
    own = os.environ.get("REVSTEP_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "revstep"


def locate(name: str | os.PathLike) -> Path:
    """The folder or GGUF file that ``name`` means; a name on the hub is downloaded as transformers would.

    Args:
        name: a folder with config.json, a folder with one GGUF file, a GGUF file, or a name on the hub.

    Raises:
        ConfigError: none of these; a folder with several GGUF files; a name the hub does not have, or that
            cannot be asked for.
    """
    path = Path(name)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ConfigError(f"{path} is a file and not GGUF; {EXPECTED}")
        return path
    if not path.is_dir():
        return _from_hub(str(name))
    found = sorted(path.glob("*.gguf"))
    if (path / "config.json").is_file() or not found:
        return path
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise ConfigError(f"{path} holds {len(found)} GGUF files, {names}: name one of them")
    return locate(found[0])


def load(
    name: str | os.PathLike[str],
    *,
    plain: bool = False,
    dtype: torch.dtype | None = None,
    say: Callable[[str], None] = print,
) -> tuple[nn.Module, Any]:
    """(model, tokenizer), the model in evaluation mode; converted where it was saved so and not ``plain``.

    Args:
        name: as :func:`locate` takes it.
        plain: also of a folder that was saved converted, the plain model.
        dtype: of the weights; None: as they were saved. Those of a GGUF file are dequantised, to float32.
        say: gets a line where something takes long.

    Raises:
        ConfigError: as :func:`locate`; weights or a tokenizer that cannot be read, or are not all there.
    """
    path = locate(name)
    if path.is_file():
        tokenizer = _gguf_tokenizer(path, say)
        return _gguf_model(path, dtype or torch.float32), tokenizer
    tokenizer = load_tokenizer(path)
    options = {} if dtype is None else {"dtype": dtype}
    return load_model(path, plain=plain, **options), tokenizer


def _from_hub(name: str) -> Path:
    if not _HUB_NAME.fullmatch(name):
        raise ConfigError(f"no folder {name}; {EXPECTED}")
    hub = require("huggingface_hub", "loading a model by its name", "hf")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=list(_HUB_FILES)))
    except Exception as error:  # of the network, the hub, its client: none of them is ours to tell apart
        raise ConfigError(
            f"no folder {name} here, and the hub has no such model or cannot be asked ({cause(error)});"
            f" {EXPECTED}"
        ) from error


def _gguf_model(path: Path, dtype: torch.dtype) -> nn.Module:
    """The weights as numbers of ``dtype``; marked as quantised, it could be neither trained nor saved."""
    transformers = require("transformers", "loading a Hugging Face model", "hf")
    require("gguf", "reading a GGUF file", "hf")
    require("accelerate", "reading a GGUF file", "hf")
    options = {"gguf_file": path.name, "dtype": dtype, "output_loading_info": True}
    if hasattr(transformers, "GgufConfig"):  # before there was this class, every GGUF file was dequantised
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    with foreign(lambda said: _cannot_read(path, "model", said)), _no_bar():
        model, info = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **options)
    refuse_loading(path, f"those of a {type(model).__name__} as the file describes it", info)
    return model.eval()


@contextlib.contextmanager
def _no_bar() -> Iterator[None]:
    """Without a terminal, no bar of transformers' conversion; nothing else has to say anything here."""
    if sys.stderr.isatty():
        yield
    else:
        with contextlib.redirect_stderr(io.StringIO()):
            yield


def _gguf_tokenizer(path: Path, say: Callable[[str], None]) -> Any:
    """Built from the file once, which takes up to a minute, and kept under the file's hash."""
    digest = sha256(path)
    cached = cache_folder() / "tokenizers" / digest
    if not cached.is_dir():
        transformers = require("transformers", "loading a tokenizer", "hf")
        require("gguf", "reading a GGUF file", "hf")
        say(f"building the tokenizer of {path.name}, up to a minute and only once; it is kept in {cached}")
        with foreign(lambda said: _cannot_read(path, "tokenizer", said)):
            made = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cached.parent) as part:  # whole or not at all
            made.save_pretrained(Path(part) / "tokenizer")
            if not cached.is_dir():
                os.replace(Path(part) / "tokenizer", cached)
    return load_tokenizer(cached)


def sha256(path: Path) -> str:
    """The hash of a file, read block by block."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _cannot_read(path: Path, what: str, said: str) -> ConfigError:
    return ConfigError(
        f"cannot read the {what} of {path}: {said}; expected a whole GGUF file of an architecture "
        "that transformers reads, or a folder that save_pretrained wrote"
    )
