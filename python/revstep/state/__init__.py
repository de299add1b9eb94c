"""State formats: how a hidden state is held between layers, and what that makes of the inverse."""

from .base import StateFormat
from .fixed import FixedPoint
from .floating import Float

__all__ = ["FixedPoint", "Float", "StateFormat"]
