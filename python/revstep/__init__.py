"""revstep: run a deep network, or an ODE, backwards, bit for bit.

>>> stack = revstep.ReversibleStack(blocks, revstep.Blend(c=0.25))     # blocks: modules that return the increment f(x)
>>> stack(x).sum().backward()                                          # activation memory does not grow with depth
>>> print(stack.report)                                                # exact (12 layers)
"""

import importlib as _importlib

import torch as _torch  # noqa: F401  (first: the extension binds to torch's OpenMP runtime)

from . import errors, ops, schemes, state
from .errors import (
    AmplificationWarning,
    CallbackError,
    ConfigError,
    NonDeterministicBlockError,
    ParasiticModeError,
    ReconstructionError,
    ReconstructionWarning,
    ResidualBlockWarning,
    ResolutionError,
    ResolutionWarning,
    RevstepError,
    StateOverflowError,
    UnsupportedError,
)
from .schemes import *  # noqa: F403  (every registered scheme, by discovery)
from .schemes import __all__ as _schemes
from .stack import ReversibleStack, from_residual
from .state import FixedPoint, Float

__version__ = "0.1.0"
__all__ = [
    "AmplificationWarning", "CallbackError", "ConfigError", "FixedPoint", "Float",
    "NonDeterministicBlockError", "ParasiticModeError", "ReconstructionError",
    "ReconstructionWarning", "ResidualBlockWarning", "ResolutionError", "ResolutionWarning",
    "ReversibleStack", "RevstepError", "StateOverflowError", "UnsupportedError", "errors",
    "from_residual", "ops", "schemes", "state", *_schemes,
]  # fmt: skip
#: Parts that are imported when first asked for.
_LATE = ("bench", "hf", "lm", "ode", "plan", "verify")


def __getattr__(name: str):
    if name in _LATE:
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
