"""Paired measurements: a training step plain, checkpointed, reversible, beside other packages; its parts and kernels; integrations beside other packages.

Figures are ratios within one run.
"""

from .beside import run_peers
from .compiled import run_compiled
from .keep import run_keep
from .kernels import KernelCase, run_kernels
from .ode import OdeCase, run_ode
from .overhead import run_overhead
from .paper import PaperCase, run_paper
from .price import run_price
from .quality import QualityCase, run_quality
from .runner import Measurement, environment, measure
from .trunk import TrunkCase, run_trunk

__all__ = [
    "KernelCase", "Measurement", "OdeCase", "PaperCase", "QualityCase", "TrunkCase", "environment", "measure", "run_compiled", "run_keep", "run_kernels", "run_ode", "run_overhead", "run_paper",
    "run_peers", "run_price", "run_quality", "run_trunk",
]  # fmt: skip
