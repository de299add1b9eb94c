"""Measure what others assume: reconstruction, gradients, step arithmetic, checksums. Each returns a :class:`Result`."""

from .amplification import Amplification, amplification, float_bound
from .arithmetic import agreement, overflow, round_trip
from .block import example_blocks, example_input
from .checksums import checksums
from .gradients import gradients
from .oracle import stored
from .reconstruction import drift, reconstruction
from .result import Result
from .suite import Case, cases, run_suite

__all__ = [
    "Amplification", "Case", "Result", "agreement", "amplification", "cases", "checksums", "drift", "example_blocks", "example_input", "float_bound",
    "gradients", "overflow", "reconstruction", "round_trip", "run_suite", "stored",
]  # fmt: skip
