"""Packages that revstep is measured beside: imported when a measurement starts, skipped with a reason where they are not there."""

from __future__ import annotations

from importlib.metadata import version
from types import ModuleType

from ..errors import ConfigError
from ..extras import require

#: Package -> oldest (major, minor) whose interface is the one called here.
OLDEST = {"rebound": (5, 2), "torchdiffeq": (0, 2)}


def peer(name: str) -> tuple[ModuleType | None, str]:
    """``(module, "")``, or ``(None, why it is left out)``."""
    try:
        module = require(name, "this comparison", "bench")
    except ConfigError as error:
        return None, str(error)
    found = tuple(int(part) for part in version(name).split(".")[:2])
    if found < OLDEST[name]:
        return None, f"{name} {version(name)} is installed, {'.'.join(map(str, OLDEST[name]))} or newer is needed: pip install -U 'revstep[bench]'"
    return module, ""


def versions() -> dict[str, str]:
    """Of the packages that can be measured beside: installed version, by name."""
    import scipy

    return {"scipy": scipy.__version__, **{name: version(name) for name in OLDEST if peer(name)[0] is not None}}
