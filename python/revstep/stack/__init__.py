"""The reversible stack: blocks in depth-time, differentiated by rebuilding every state from the last two."""

from ..recurrence.ambient import rebuilding
from .report import Report
from .residual import from_residual
from .stack import ReversibleStack
from .states import LastTwo, States

__all__ = ["LastTwo", "Report", "ReversibleStack", "States", "from_residual", "rebuilding"]
