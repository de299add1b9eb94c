"""The reversible stack: blocks in depth-time, differentiated by rebuilding every state from the last two."""

from .._recurrence.ambient import rebuilding
from ._report import LastTwo, Report, States
from ._residual import from_residual
from ._stack import ReversibleStack
from ._tiles import tokenwise

__all__ = ["LastTwo", "Report", "ReversibleStack", "States", "from_residual", "rebuilding", "tokenwise"]
