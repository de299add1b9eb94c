"""What the cases of ``revstep bench`` measure with: interleaved timing, memory in child processes, other
packages.

Figures are ratios within one run.
"""

from .runner import Measurement, environment, measure

__all__ = ["Measurement", "environment", "measure"]
