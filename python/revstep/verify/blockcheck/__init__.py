"""A user's own block looked at: does it keep the rules, what do float states lose on it, which fixed-point
format holds it.

:mod:`._load` finds the factory, :mod:`._behaviour` looks at one block alone, :mod:`._depth` at many in a row,
:mod:`._check` puts the findings together.
"""

from ._check import BlockReport, check_block
from ._load import Finding, Subject, load_factory, make_subject

__all__ = ["BlockReport", "Finding", "Subject", "check_block", "load_factory", "make_subject"]
