"""A user's own block looked at: does it keep the rules, what do float states lose on it, which fixed-point
format holds it.

``load`` finds the factory, ``behaviour`` looks at one block alone, ``depth`` at many in a row, ``check`` puts
the findings together.
"""

from ._check import BlockReport, check_block
from ._finding import Finding
from ._load import Subject, load_factory, make_subject

__all__ = ["BlockReport", "Finding", "Subject", "check_block", "load_factory", "make_subject"]
