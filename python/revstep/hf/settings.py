"""The reversible settings in a model's config.json, under the key ``revstep``; a plain transformers loads the same file and ignores it."""

from __future__ import annotations

from typing import Any

from ..errors import ConfigError
from ..options import StackOptions
from .layer_steps import Conversion

KEY = "revstep"


def write(model: Any, made: Conversion) -> None:
    """Put what ``convert`` was given into the config of this transformers model; a retrofitted one has no cache, and ``generate`` is told so."""
    config, stack = model.config, made.stack
    setattr(
        config, KEY,
        {
            **stack.options.to_dict(), "on_nonfinite": stack.state.on_nonfinite, "retrofit": made.retrofit, "adapter": made.adapter.name,
            "used_cache": [c.use_cache for c in _with_cache(model)],
        },
    )  # fmt: skip
    if made.retrofit:
        for c in _with_cache(model):
            c.use_cache = False


def remove(model: Any) -> None:
    """The inverse of :func:`write`, also on a model that was loaded; nothing where there are no settings."""
    stored = getattr(model.config, KEY, None)
    if stored is None:
        return
    for c, used in zip(_with_cache(model), read(model.config, whole=True)["used_cache"]):
        c.use_cache = used
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


def read(config: Any, whole: bool = False) -> dict[str, Any]:
    """Arguments for ``convert`` from a loaded config; ``whole``: all that is stored.

    Raises:
        ConfigError: there are none, or not of this form.
    """
    stored = getattr(config, KEY, None)
    if stored is None:
        raise ConfigError(
            "the config has no reversible settings: it was not saved from a converted model. Load it with transformers and call revstep.hf.convert"
        )
    needed = {"scheme", "state", "start", "on_nonfinite", "retrofit", "adapter", "used_cache"}
    known = needed | set(StackOptions.names())  # some are not in models of earlier versions
    if not isinstance(stored, dict) or not needed <= set(stored) <= known:
        raise ConfigError(f"the config's {KEY!r} is {stored!r}, expected a dict with {', '.join(sorted(known))}")
    return {name: value for name, value in stored.items() if whole or name != "used_cache"}
