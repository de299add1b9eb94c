"""The step operators, registered with torch.library under ``revstep::``.

========  =====================================================================  ========================
operator  computes                                                               returns
========  =====================================================================  ========================
step      ``next = alpha prev + beta cur + gamma f``                             view, next, carry, stats
inverse   ``prev`` from ``next`` (bit-exact in fixed point)                      view, prev, stats
encode    floats to a state: ``X = rint(x 2**F)``                                view, state, stats
decode    a state to floats: ``X 2**-F``                                         view
checksum  64-bit sum of (index, bits) of a state                                 int64 scalar
scale     ``factor * g`` for up to three factors, in one pass                    list of tensors
========  =====================================================================  ========================

``step``, ``inverse`` and ``scale`` take a choice of rows: row b has the numbers ``second`` (alpha, beta,
gamma, or the factors) where ``choice[b]`` is 1, the first ones where it is 0. ``view`` is the float view in
``view_dtype`` (an empty tensor when ``view_dtype`` is None), ``carry`` the packed bits that make ``|alpha| <
1`` invertible, ``stats`` an int64 tensor ``[checksum, bad elements, float64 bits of the largest magnitude,
index of the first bad element or -1]``. States are int32, int64 (fixed point) or float32, float64; ``f`` is
float32, float64, bfloat16 or float16, of the state's shape. Rows are the entries of a state's first
dimension, ``choice`` is uint8 of shape (rows,) (CUDA kernels take any value but 0 for 1), and all elements
have the carry bits of the greedier set. Beside them stand two plain functions of :mod:`._look`, which write
nothing: ``fingerprint`` of any tensor, and ``differs`` of a state and its float view; and ``BoundStep``, a
step on the CPU whose contract is checked once. Products of ``scale``
have the dtype of ``g`` and the bits of torch's ``g * factor``; the last one is then rounded to
``last_dtype``. A factor 0 gives 0. CPU and CUDA run compiled kernels, other devices the reference.
"""

from __future__ import annotations

from . import reference
from ._bound import BoundStep
from ._coefficients import (
    COEFFICIENT_BITS,
    MAX_ALPHA,
    MAX_BETA,
    MAX_CARRY_BITS,
    MAX_FRAC_BITS,
    Stats,
    carry_bits,
    carry_shape,
    read_stats,
    snap,
)
from ._kernels import VALUE_DTYPES
from ._look import differs, few, fingerprint, sparse
from ._registration import checksum, decode, encode, inverse, scale, step

__all__ = [
    "COEFFICIENT_BITS",
    "MAX_ALPHA",
    "MAX_BETA",
    "MAX_CARRY_BITS",
    "MAX_FRAC_BITS",
    "VALUE_DTYPES",
    "BoundStep",
    "Stats",
    "carry_bits",
    "carry_shape",
    "checksum",
    "decode",
    "differs",
    "encode",
    "few",
    "fingerprint",
    "inverse",
    "read_stats",
    "reference",
    "scale",
    "snap",
    "sparse",
    "step",
]


def __dir__() -> list[str]:
    return sorted(__all__)
