"""Memory and time of a training step before it is run: plain, checkpointed and reversible. ``plan`` is the function; ``revstep plan`` the command."""

from .planner import Plan, Row, plan
from .public import PUBLIC

__all__ = ["PUBLIC", "Plan", "Row", "plan"]
