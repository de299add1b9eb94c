"""How revstep imports what it does not name or need at once: registries that find the modules of a package,
names of a package that are imported on their first use, and optional packages.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from .errors import ConfigError, RevstepError

# ------------------------------------------------------------------------------------------------------------
# Registries without lists: every module of a package that defines a named subclass of its base class is in.


def discover(package: str, base: type) -> dict[str, type]:
    """Subclasses of ``base`` with a non-empty ``name``, defined in the modules of ``package`` without
    underscore, by name.
    """
    found: dict[str, type] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        for cls in vars(module).values():
            if (
                inspect.isclass(cls)
                and issubclass(cls, base)
                and cls.__module__ == module.__name__
                and cls.name
            ):
                found[cls.name] = cls
    return dict(sorted(found.items()))


# ------------------------------------------------------------------------------------------------------------
# Names of a package that are imported on first use, so that importing it does not wait for torch or
# transformers.


def late(
    package: str, homes: Mapping[str, str]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """``(__all__, __getattr__, __dir__)`` of a package whose name ``n`` is defined in its module
    ``homes[n]``.
    """
    names = sorted(homes)

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(names)}")
        value = getattr(importlib.import_module(f".{homes[name]}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    return names, get, lambda: names


# ------------------------------------------------------------------------------------------------------------
# Optional packages, of the extras lm, hf, demo and bench: imported where used, named in a sentence where
# missing.


def require(module: str, purpose: str, extra: str = "lm") -> ModuleType:
    """Import ``module``, needed for ``purpose`` (for example ``"training a BPE tokenizer"``) and brought by
    ``revstep[extra]``.

    Raises:
        ConfigError: it is not installed; says which extra brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != top:
            raise  # the package is there and one of its own imports is broken: not ours to reword
        raise ConfigError(
            f"{purpose} needs the package {top}, which is not installed; run: pip install 'revstep[{extra}]'"
        ) from error


def cause(error: BaseException) -> str:
    """The first line of an error, or its kind where it has no text; cut where it is long."""
    said = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return said if len(said) <= 300 else f"{said[:300]}..."


@contextlib.contextmanager
def foreign(refusal: Callable[[str], RevstepError]) -> Iterator[None]:
    """Inside, another package reads or builds what a user gave, and whatever it raises is ``refusal`` of the
    cause: for what it cannot use each has errors of its own, and often any. This package's errors and a lack
    of memory pass.
    """
    try:
        yield
    except (RevstepError, MemoryError):
        raise
    except BaseException as error:
        # What panicked in Rust is no Exception, so that nobody takes it for one; nothing was harmed by it
        # here.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise refusal(cause(error)) from error
