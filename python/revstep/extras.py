"""Optional packages, of the extras lm, hf, demo and bench: imported where used, named in a sentence where missing."""

from __future__ import annotations

import importlib
from types import ModuleType

from .errors import ConfigError


def require(module: str, purpose: str, extra: str = "lm") -> ModuleType:
    """Import ``module``, needed for ``purpose`` (for example ``"training a BPE tokenizer"``) and brought by ``revstep[extra]``.

    Raises:
        ConfigError: it is not installed; says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != top:
            raise  # the package is there and one of its own imports is broken: not ours to reword
        raise ConfigError(f"{purpose} needs the package {top}, which is not installed; run: pip install 'revstep[{extra}]'") from error
