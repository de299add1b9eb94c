"""Memory and time of a training step before it is run: plain, checkpointed and reversible. ``plan`` is the
function; ``revstep plan`` the command.
"""

from ._planner import Plan, Row, plan
from ._source import PUBLIC

__all__ = ["PUBLIC", "Plan", "Row", "plan"]
