"""Registries without lists: every module of a package that defines a named subclass of its base class is in."""

from __future__ import annotations

import importlib
import inspect
import pkgutil


def discover(package: str, base: type, skip: tuple[str, ...] = ("base", "registry")) -> dict[str, type]:
    """Subclasses of ``base`` with a non-empty ``name``, defined in modules of ``package`` other than ``skip``, by name."""
    found: dict[str, type] = {}
    for info in pkgutil.iter_modules(importlib.import_module(package).__path__):
        if info.name in skip:
            continue
        module = importlib.import_module(f"{package}.{info.name}")
        for cls in vars(module).values():
            if inspect.isclass(cls) and issubclass(cls, base) and cls.__module__ == module.__name__ and cls.name:
                found[cls.name] = cls
    return dict(sorted(found.items()))
