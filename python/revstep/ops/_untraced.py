"""Calls that a compiler leaves out of its graph. Imported where something is compiled only, for it loads
dynamo.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


call = torch.compiler.disable(
    _call,
    reason=(
        "whether a step's values are in range is known at run time only, and a format with"
        " on_nonfinite='raise' asks: one with 'propagate' does not"
    ),
)
