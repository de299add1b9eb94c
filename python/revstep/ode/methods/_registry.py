"""All methods by name: the registered schemes, the compositions, the reversible Runge-Kutta methods. No list
is kept by hand.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, NamedTuple

from ... import schemes
from ...errors import ConfigError
from .. import compositions, tableaus
from ._base import Method
from .reversible_rk import ReversibleRK
from .splitting import SplittingMethod
from .twostep import from_scheme


def available() -> dict[str, Method]:
    """Every method with its default options, by name."""
    return dict(_known())


class _Registry(NamedTuple):
    """Methods, and the data they were made of."""

    data: tuple[Any, ...]
    methods: dict[str, Method]


_registry = _Registry((), {})


def _known() -> dict[str, Method]:
    """The methods of today's data. They are immutable and made once: making all takes longer than a short
    run.
    """
    global _registry
    of_schemes = [cls for cls in schemes.available().values() if not cls.per_sample]
    data = (*of_schemes, *compositions.available().values(), *tableaus.available().values())
    if data != _registry.data:
        found: dict[str, Method] = {cls.name: from_scheme(cls()) for cls in of_schemes}
        found |= {name: SplittingMethod(one) for name, one in compositions.available().items()}
        for name in tableaus.available():
            method = ReversibleRK(name)
            found[method.name] = method
        _registry = _Registry(data, dict(sorted(found.items())))
    return _registry.methods


#: The method of an equation where none is named.
DEFAULT = {"first": "reversible_rk4", "second": "kahan_li6", "separable": "kahan_li6"}


def default(equation: str) -> str:
    """The name of the method that integrates this kind of equation where the caller names none."""
    return DEFAULT[equation]


def resolve(scheme: Any, h: Any, start: str | None = None) -> Method:
    """The method meant by ``scheme``: a name, a Scheme or its class, a Composition or Splitting, or a Method.

    Raises:
        ConfigError: an unknown name (the known ones are listed), or a Scheme whose own h contradicts ``h``.
    """
    if isinstance(scheme, str):
        # odeint's name for it, where "midpoint" is torchdiffeq's.
        scheme = "midpoint" if scheme == "two_step_midpoint" else scheme
        known = _known()
        if scheme not in known:
            raise ConfigError(f"unknown method {scheme!r}, expected one of {', '.join(known)}")
        scheme = known[scheme]
        if start is not None and hasattr(scheme, "scheme"):
            return from_scheme(scheme.scheme, start)
    if inspect.isclass(scheme) and issubclass(scheme, schemes.Scheme):
        scheme = scheme()
    if isinstance(scheme, schemes.Scheme):
        if scheme.per_sample:
            raise ConfigError(
                f"{scheme.name} draws its coefficients for each sample of a batch, which one trajectory has"
                " not: use blend"
            )
        default = next(f.default for f in dataclasses.fields(scheme) if f.name == "h")
        if scheme.h not in (default, float(h)):
            raise ConfigError(
                f"{scheme} has h = {scheme.h}, but integrate was given h = {float(h)}: leave it out of the"
                " scheme"
            )
        return from_scheme(scheme, start)
    if isinstance(scheme, (compositions.Composition, compositions.Splitting)):
        scheme = SplittingMethod(scheme)
    if not isinstance(scheme, Method):
        raise ConfigError(
            f"scheme is {scheme!r}, expected a name, a Scheme, a Composition, a Splitting or a Method"
        )
    if start is not None:
        raise ConfigError(
            f"start is {start!r}, but {scheme.name} takes none: only two-step schemes need a start"
        )
    return scheme
