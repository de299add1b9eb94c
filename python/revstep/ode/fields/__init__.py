"""Built-in fields: each runs in the compiled loop, and on torch tensors and NumPy arrays. They are found
here, listed nowhere.

>>> from revstep.ode import fields
>>> fields.available()["Kepler"](mu=1.0)
Kepler(mu=1.0, equation='separable')
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING

from ...errors import ConfigError
from ._base import BuiltIn

_FOUND: dict[str, type[BuiltIn]] = {}
for _module in sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")):
    for _value in vars(importlib.import_module(f"{__name__}.{_module}")).values():
        if (
            isinstance(_value, type)
            and issubclass(_value, BuiltIn)
            and _value.__module__ == f"{__name__}.{_module}"
        ):
            _FOUND[_value.__name__] = _value
globals().update(_FOUND)

__all__ = ["BuiltIn", "available", "get", *_FOUND]

if TYPE_CHECKING:  # what a type checker sees of what is found; .ci/typed.py compares the names
    from .bodies import Kepler as Kepler
    from .bodies import NBody as NBody
    from .oscillators import Fput as Fput
    from .oscillators import Harmonic as Harmonic
    from .oscillators import HenonHeiles as HenonHeiles
    from .oscillators import Linear as Linear
    from .oscillators import LotkaVolterra as LotkaVolterra
    from .oscillators import LotkaVolterraLog as LotkaVolterraLog
    from .oscillators import Pendulum as Pendulum
    from .oscillators import VanDerPol as VanDerPol


def available() -> dict[str, type[BuiltIn]]:
    """Field class by name, sorted."""
    return dict(sorted(_FOUND.items()))


def get(name: str) -> type[BuiltIn]:
    """Raises ConfigError for a name that is not there, listing those that are."""
    if name not in _FOUND:
        raise ConfigError(f"no field {name!r}; there are {', '.join(sorted(_FOUND))}")
    return _FOUND[name]


def __dir__() -> list[str]:
    return sorted(__all__)
