"""The pretrained model that cases of the benchmark fine-tune."""

from __future__ import annotations

from typing import Any

from revstep.errors import ConfigError


def load_pretrained(name: str) -> tuple[Any, Any]:
    """(model, tokenizer), plain, of what ``name`` means to ``revstep finetune``; empty: SmolLM2-135M.

    Raises:
        ConfigError: the weights cannot be had.
    """
    if not name:
        from ..demo.real.weights import find_weights

        found, why = find_weights()
        if found is None:
            raise ConfigError(f"SmolLM2-135M cannot be had: {why}; pass --model with one of your own")
        name = str(found)
    from revstep.hf.sources import load

    return load(name, plain=True)
