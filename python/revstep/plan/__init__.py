"""Memory and time of a training step before it is run: plain, checkpointed and reversible. ``plan`` is the
function; ``revstep plan`` the command.
"""

from ._choice import Point
from ._planner import Plan, plan
from ._rows import Row
from ._source import PUBLIC

__all__ = ["PUBLIC", "Plan", "Point", "Row", "plan"]
