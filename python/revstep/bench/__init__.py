"""Paired measurements of one training step: plain, checkpointed, reversible. Figures are ratios within one run."""

from .runner import Measurement, environment, measure
from .trunk import TrunkCase, run_trunk

__all__ = ["Measurement", "TrunkCase", "environment", "measure", "run_trunk"]
