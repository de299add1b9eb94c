"""The claims of revstep, measured: the steps' arithmetic, every scheme of a stack, every method of
:mod:`.ode`.
"""

from .suite import (
    Case,
    agreement,
    cases,
    checksums,
    example_blocks,
    example_input,
    overflow,
    round_trip,
    run_suite,
)

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
