"""Looking without writing: fingerprints of any dense tensor, and whether a float
view is still that of its state.

Plain functions, not operators of torch: they are called outside of any graph, and a number that the CPU has
at once should not become a tensor on the way. On the CPU they return an int; on other devices an int64 tensor
of one element, which nobody has waited for.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _C
from ..errors import ConfigError
from . import reference
from ._devices import refusal
from ._forks import threads
from ._kernels import STATE_DTYPES, _pointer, check_format, decode_arguments

#: A tensor of at most so many bytes is looked at as a whole; of a larger one ``LINES`` lines of 64 bytes, or
#: one in ``SPARSE`` where that is more; of one that other means watch too ``FEW``.
WHOLE_BYTES, LINES, SPARSE, FEW = 16384, 128, 1024, 16
_LINE = 64


def sparse(nbytes: int) -> int:
    """``every`` for a tensor that was computed: all of a small one, 128 lines of a larger
    one, a 1024th of a very large one.
    """
    return 1 if nbytes <= WHOLE_BYTES else min(SPARSE, -(-nbytes // (LINES * _LINE)))


def few(nbytes: int) -> int:
    """``every`` for a tensor that other means watch too: 16 lines of it."""
    return max(1, nbytes // (FEW * _LINE))


def fingerprint(x: Tensor, every: int = 1, seed: int = 0) -> int | Tensor:
    """64 bits from one line of 64 bytes in every ``every`` lines of ``x``; which one,
    the seed (below 2**32) decides.

    The sum over the elements looked at of ``bits * inner(i mod 128) * outer(i / 128)`` modulo 2**64, with the
    odd weights of the checksum; elements are numbered as they lie in memory, expanded dimensions counted
    once. Any strides, any dtype of 1, 2, 4, 8 or 16 bytes. Two tensors of the same strides and bits have the
    same fingerprint; a change of one element that is looked at always changes it. A tensor without memory (no
    elements, forward mode's zeros, weights that a sharding engine has let go) has the fingerprint 0.
    """
    if x.is_cpu:
        at, width = x.data_ptr(), x.itemsize
        if at == 0 or at == x.storage_offset() * width:  # _without_memory, here without a call
            return 0
        return _C.sample(at, width, x.shape, x.stride(), every, seed)
    if _without_memory(x, _pointer(x)):
        return 0
    if x.device.type == "cuda" and not refusal(x.device):
        out = x.new_empty((), dtype=torch.int64)
        with torch.cuda.device(x.device):
            stream = torch.cuda.current_stream(x.device).cuda_stream
            what = _pointer(x), x.element_size(), x.shape, x.stride()
            _C.sample_cuda(*what, every, seed, out.data_ptr(), stream)
        return out
    return reference.fingerprint(x, every, seed)


def _without_memory(x: Tensor, at: int) -> bool:
    """Whether nothing may be read at ``at``, which is where a part of a storage at address 0 would lie."""
    return at == 0 or at == x.storage_offset() * x.element_size()


def differs(state: Tensor, view: Tensor, frac_bits: int) -> int | Tensor:
    """How many elements of ``view`` have other bits than ``decode(state, frac_bits, view.dtype)``;
    both contiguous, of one shape.

    Raises:
        ConfigError: a dtype that is no state's or no view's, or two shapes.
    """
    if state.dtype not in STATE_DTYPES:
        raise ConfigError(f"state has dtype {state.dtype}, expected one of {STATE_DTYPES}")
    if state.shape != view.shape:
        has, expected = tuple(view.shape), tuple(state.shape)
        raise ConfigError(f"the float view has shape {has}, expected that of its state, {expected}")
    check_format(state.dtype, frac_bits, view.dtype)
    if state.device.type == "cpu" and state.is_contiguous() and view.is_contiguous():
        return _C.differs(decode_arguments(state, view, frac_bits), threads(), -1)
    from ._registration import decode

    found = reference.different(decode(state, frac_bits, view.dtype), view)
    return int(found) if state.device.type == "cpu" else found
