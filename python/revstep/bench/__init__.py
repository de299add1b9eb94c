"""Paired measurements: a training step plain, checkpointed, reversible, beside other packages; integrations beside other packages. Figures are ratios within one run."""

from .beside import run_peers
from .compiled import run_compiled
from .keep import run_keep
from .ode import OdeCase, run_ode
from .runner import Measurement, environment, measure
from .trunk import TrunkCase, run_trunk

__all__ = ["Measurement", "OdeCase", "TrunkCase", "environment", "measure", "run_compiled", "run_keep", "run_ode", "run_peers", "run_trunk"]
