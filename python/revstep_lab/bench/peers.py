"""Packages that revstep is measured beside: imported when a measurement starts, skipped with a reason where they are not there."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from types import ModuleType

from revstep.errors import ConfigError
from revstep.extras import require

_EXTRA = "pip install 'revstep[bench]'"
#: Package -> oldest (major, minor) whose interface is the one called here, and what installs it.
OLDEST = {
    "rebound": ((5, 2), _EXTRA),
    "torchdiffeq": ((0, 2), _EXTRA),
    "diffrax": ((0, 7), _EXTRA),
    "revlib": ((1, 7), _EXTRA),
    "revtorch": ((0, 2), _EXTRA),
    "memcnn": (
        (1, 5),
        "pip install --no-deps memcnn",
    ),  # its torchvision and SimpleITK are for its examples; a torchvision of another build breaks transformers
    "transformers": ((5, 0), "pip install 'revstep[hf]'"),
}


def peer(name: str) -> tuple[ModuleType | None, str]:
    """``(module, "")``, or ``(None, why it is left out)``."""
    oldest, install = OLDEST[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its own use of torch
            module = require(name, "this comparison")
    except ConfigError:
        return None, f"this comparison needs the package {name}, which is not installed; run: {install}"
    found = tuple(int(part) for part in version(name).split(".")[:2])
    if found < oldest:
        return None, f"{name} {version(name)} is installed, {'.'.join(map(str, oldest))} or newer is needed: {install} --upgrade"
    return module, ""


def versions(*names: str) -> dict[str, str]:
    """Installed version of those of the packages that can be measured beside, by name."""
    return {name: version(name) for name in names if peer(name)[0] is not None}
