"""The claims of revstep, measured: the steps' arithmetic, every scheme of a stack, every method of :mod:`.ode`."""

from .arithmetic import agreement, overflow, round_trip
from .block import example_blocks, example_input
from .checksums import checksums
from .suite import Case, cases, run_suite

__all__ = [
    "Case",
    "agreement",
    "cases",
    "checksums",
    "example_blocks",
    "example_input",
    "overflow",
    "round_trip",
    "run_suite",
]
