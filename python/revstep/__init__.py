"""revstep: run a deep network, or an ODE, backwards, bit for bit.

>>> stack = revstep.ReversibleStack(blocks, revstep.Blend(c=0.25))  # modules that return the increment f(x)
>>> stack(x).sum().backward()  # rebuilds the states of the layers, which nobody stored
>>> print(stack.report)
exact (12 states)
"""

from __future__ import annotations

import importlib as _importlib
from importlib.util import find_spec as _find_spec
from typing import TYPE_CHECKING
from typing import Any as _Any

if TYPE_CHECKING:  # what a type checker sees of it; .ci/typed.py compares the names
    from . import errors as errors
    from . import hf as hf
    from . import lm as lm
    from . import ode as ode
    from . import ops as ops
    from . import plan as plan
    from . import schemes as schemes
    from . import stack as stack
    from . import state as state
    from . import verify as verify
    from ._fused_step import FusedStep as FusedStep
    from ._fused_step import fused_step as fused_step
    from ._options import StackOptions as StackOptions
    from .errors import *  # noqa: F403
    from .schemes import BDIA as BDIA
    from .schemes import Blend as Blend
    from .schemes import Claims as Claims
    from .schemes import Coefficients as Coefficients
    from .schemes import Hamiltonian as Hamiltonian
    from .schemes import Leapfrog as Leapfrog
    from .schemes import Midpoint as Midpoint
    from .schemes import MidpointBlend as MidpointBlend
    from .schemes import RowCoefficients as RowCoefficients
    from .schemes import Scheme as Scheme
    from .schemes import available as available
    from .schemes import make as make
    from .stack import ReversibleStack as ReversibleStack
    from .stack import from_residual as from_residual
    from .stack import tokenwise as tokenwise
    from .state import FixedPoint as FixedPoint
    from .state import Float as Float

__version__ = "0.1.0"
#: Name -> the part it is of. Nothing is imported before it is asked for, so that the command line answers
#: before torch is loaded.
_HOMES = {
    "FixedPoint": "state",
    "FusedStep": "_fused_step",
    "fused_step": "_fused_step",
    "Float": "state",
    "ReversibleStack": "stack",
    "StackOptions": "_options",
    "from_residual": "stack",
    "tokenwise": "stack",
    **dict.fromkeys(
        (
            "AmplificationWarning",
            "CallbackError",
            "ConfigError",
            "NonDeterministicBlockError",
            "ParasiticModeError",
            "ReconstructionError",
            "ReconstructionWarning",
            "ResidualBlockWarning",
            "ResolutionError",
            "ResolutionWarning",
            "RevstepError",
            "StateOverflowError",
            "UnsupportedError",
        ),
        "errors",
    ),
}
_PARTS = ("errors", "hf", "lm", "ode", "ops", "plan", "schemes", "stack", "state", "verify")


if not TYPE_CHECKING:  # it would make every name one that could be anything

    def __getattr__(name: str) -> _Any:
        if not name.startswith("_") and _find_spec(f"{__name__}.{name}"):  # a part
            return _importlib.import_module(f"{__name__}.{name}")
        if name == "__all__":  # with every registered scheme, by discovery
            value = sorted({*_HOMES, *_PARTS, *__getattr__("schemes").__all__})
        elif name in _HOMES:
            value = getattr(_importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
        elif not name.startswith("_") and name in __getattr__("schemes").__all__:
            value = getattr(__getattr__("schemes"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return globals()["__getattr__"]("__all__")
