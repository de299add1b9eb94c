"""What surrounds a converted Hugging Face model: its reversible settings in config.json, written and read,
and the terminal of the commands that work on it: silence, a progress bar, the time left.
"""

from __future__ import annotations

import contextlib
import copy
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from .._imports import require
from .._models.layers import unwrapped
from .._options import StackOptions
from ..errors import ConfigError
from ._layer_steps import Conversion

# ------------------------------------------------------------------------------------------------------------
# The terminal of the commands for Hugging Face models: lines and bars of their own, and silence.


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside, transformers reports errors only and tokenizers start no threads (Trainer's workers would warn
    of them); as before afterwards.

    Raises:
        ConfigError: transformers is not installed.
    """
    logging = require("transformers", "working with Hugging Face models", "hf").utils.logging
    level, bars, threads = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        os.environ.get("TOKENIZERS_PARALLELISM"),
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        with warnings.catch_warnings():
            # Of peft, where a model came from a GGUF file: there is no config.json to compare the vocabulary
            # with.
            warnings.filterwarnings("ignore", "Could not find a config file", category=UserWarning)
            # Names that peft still uses, for example.
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
        if threads is None:
            del os.environ["TOKENIZERS_PARALLELISM"]


# ------------------------------------------------------------------------------------------------------------
# The reversible settings in a model's config.json, under the key ``revstep``; a plain transformers loads the
# same file and ignores it.

KEY = "revstep"
#: In the settings of 0.1.0, which had a conversion of this name.
FORMER = {"retrofit", "used_cache"}


def write(model: nn.Module, made: Conversion) -> None:
    """Put what ``convert`` was given into the config of this model.

    The config becomes the model's own, for another model may have been made from the same object.
    """
    shared = unwrapped(model).config
    config = copy.copy(shared)
    for module in model.modules():
        if module.__dict__.get("config") is shared:
            module.config = config
    stack = made.stack
    setattr(
        config, KEY,
        {
            **stack.options.to_dict(), "on_nonfinite": stack.state.on_nonfinite, "adapter": made.adapter.name,
        },
    )  # fmt: skip


def remove(model: Any) -> None:
    """The inverse of :func:`write`, also on a model that was loaded; nothing where there are no settings."""
    if getattr(model.config, KEY, None) is not None:
        delattr(model.config, KEY)


def _with_cache(model: Any) -> list[Any]:
    """The configs that say whether a key-value cache is used; of an encoder perhaps none."""
    text = model.config.get_text_config()
    candidates = [model.config, getattr(model, "generation_config", None)]
    if text is not model.config:
        candidates.append(text)
    return [c for c in candidates if hasattr(c, "use_cache")]


def uncached(model: Any) -> dict[str, Any]:
    """What to pass to a transformers model for a pass without key-value cache; nothing if it has none."""
    return {"use_cache": False} if _with_cache(model) else {}


def read(config: Any) -> dict[str, Any]:
    """Arguments for ``convert`` from a loaded config.

    Raises:
        ConfigError: there are none, or not of this form.
    """
    stored = getattr(config, KEY, None)
    if stored is None:
        raise ConfigError(
            "the config has no reversible settings: it was not saved from a converted model. Load it with"
            " transformers and call revstep.hf.convert"
        )
    needed = {"scheme", "state", "start", "on_nonfinite", "adapter"}
    known = needed | set(StackOptions.names())  # some are not in models of earlier versions
    if not isinstance(stored, dict) or not needed <= set(stored) <= known | FORMER:
        raise ConfigError(
            f"the config's {KEY!r} is {stored!r}, expected a dict with {', '.join(sorted(known))}"
        )
    return arguments(stored)


def arguments(stored: dict[str, Any]) -> dict[str, Any]:
    """What was stored, perhaps by an earlier version, as ``convert`` takes it.

    Raises:
        ConfigError: it was converted in a way that there is no more.
    """
    if stored.get("retrofit"):
        raise ConfigError(
            "the model was converted with retrofit, which revstep has no more (three evaluations a layer):"
            " load it with transformers, which ignores that, and convert it with Blend, which is as close"
            " with one"
        )
    return {name: value for name, value in stored.items() if name not in FORMER}


# ------------------------------------------------------------------------------------------------------------
# How far a fine-tuning is: a bar on a terminal, and the time left.


@contextlib.contextmanager
def progress_bar(steps: int, wanted: bool) -> Iterator[Any]:
    """A progress bar on stderr; None where none is wanted or there is no terminal to show it."""
    if not (wanted and sys.stderr.isatty()):
        yield None
        return
    tqdm = require("tqdm", "the progress bar (or turn it off)", "hf").tqdm
    with tqdm(total=steps, unit="step", desc="fine-tuning", dynamic_ncols=True) as bar:
        yield bar


def time_left(seconds: Sequence[float], steps: int) -> str:
    """How long ``steps`` more take, from the median of the last ones: ``2 min 05 s left``."""
    last = sorted(seconds[-20:])
    left = round(steps * last[len(last) // 2]) if last else 0
    return f"{left // 60} min {left % 60:02d} s left" if left >= 60 else f"{left} s left"
