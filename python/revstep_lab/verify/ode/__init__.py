"""Every claim of every integration method, measured: one property a file, found by reading the package.

A property is a module with ``NAME``, ``measure(method, equation) -> list[Result]`` and ``MUTANTS``: what ->
``(broken method, equation)``, each of which ``measure`` must reject. What does not apply to a method is a
Result that says why, so that no case is skipped silently.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

from revstep.ode.methods import Method, available
from revstep.verify._checks import Result, failed

__all__ = ["OdeCase", "cases", "properties", "run", "run_suite"]


@dataclass(frozen=True)
class OdeCase:
    """One property of one method on one kind of equation, by name."""

    property: str
    method: str
    equation: str


@lru_cache(maxsize=1)
def _found() -> dict[str, ModuleType]:
    modules = (importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__))
    return dict(sorted((m.NAME, m) for m in modules if hasattr(m, "NAME") and hasattr(m, "measure")))


def properties() -> dict[str, ModuleType]:
    """Every property, by name."""
    return dict(_found())


def cases(methods: dict[str, Method] | None = None) -> list[OdeCase]:
    """Every property x registered method x kind of equation it serves; the registries decide
    which there are.
    """
    known = available() if methods is None else methods
    return [
        OdeCase(prop, name, equation)
        for name, method in known.items()
        for equation in method.equations
        for prop in properties()
    ]


def run(case: OdeCase) -> list[Result]:
    """The results of a case; code that raises is a claim that fails, not a suite that stops."""
    method, module = available()[case.method], properties()[case.property]
    try:
        return module.measure(method, case.equation)
    except Exception as error:
        return [failed(f"{case.property} of {case.method} on a {case.equation} equation", "error", error)]


def run_suite(rows: list[OdeCase] | None = None) -> Iterator[tuple[OdeCase, list[Result]]]:
    """Measure row by row, so that a caller can show progress."""
    for case in cases() if rows is None else rows:
        yield case, run(case)
