"""Measure what others assume, on one's own stack: reconstruction, gradients, growth of float states.

:func:`reconstruction` and :func:`gradients` return a :class:`Result`, the others figures.
:mod:`.blockcheck` examines a block before it is put into a stack. The claims of revstep itself (every scheme,
method and state format) are measured by ``revstep verify``, of the package revstep-lab.
"""

from . import blockcheck
from ._checks import (
    Amplification,
    Result,
    amplification,
    drift,
    float_bound,
    gradients,
    reconstruction,
    stored,
)

__all__ = [
    "Amplification",
    "Result",
    "amplification",
    "blockcheck",
    "drift",
    "float_bound",
    "gradients",
    "reconstruction",
    "stored",
]
