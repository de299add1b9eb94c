"""Which dtypes states and values have, and the contracts of the operators that turn one into the other: the
same for the kernels, the reference and the fake kernels by which a graph is traced.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import ConfigError
from ._coefficients import MAX_FRAC_BITS

VALUE_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
STATE_DTYPES = (torch.int32, torch.int64, torch.float32, torch.float64)
_MAX_FRAC_BITS = {torch.int32: MAX_FRAC_BITS[32], torch.int64: MAX_FRAC_BITS[64]}


def check_format(state: torch.dtype, frac_bits: int, view_dtype: torch.dtype | None) -> None:
    if view_dtype is not None and view_dtype not in VALUE_DTYPES:
        raise ConfigError(f"the float view has dtype {view_dtype}, expected one of {VALUE_DTYPES}")
    top = _MAX_FRAC_BITS.get(state)
    if top is not None and not 0 <= frac_bits <= top:
        raise ConfigError(f"frac_bits = {frac_bits} for {state}, expected 0 to {top}")


def check_encode(x: Tensor, state_dtype: torch.dtype, frac_bits: int, view_dtype: torch.dtype | None) -> None:
    """Contract of a tensor that becomes a state. Raises ConfigError."""
    if x.dtype not in VALUE_DTYPES:
        raise ConfigError(f"x has dtype {x.dtype}, expected one of {VALUE_DTYPES}")
    if state_dtype not in STATE_DTYPES:
        raise ConfigError(f"state dtype is {state_dtype}, expected one of {STATE_DTYPES}")
    check_format(state_dtype, frac_bits, view_dtype)


def check_decode(state: Tensor, frac_bits: int, view_dtype: torch.dtype) -> None:
    """Contract of a state that becomes floats. Raises ConfigError."""
    if state.dtype not in STATE_DTYPES:
        raise ConfigError(f"state has dtype {state.dtype}, expected one of {STATE_DTYPES}")
    check_format(state.dtype, frac_bits, view_dtype)


def check_checksum(x: Tensor) -> None:
    """Contract of a checksum. Raises ConfigError."""
    if x.dtype not in STATE_DTYPES:
        raise ConfigError(f"x has dtype {x.dtype}, expected one of {STATE_DTYPES}")
