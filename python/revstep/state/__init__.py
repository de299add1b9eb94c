"""State formats: how a hidden state is held between layers, and what that makes of the inverse."""

from ._formats import FixedPoint, Float, StateFormat

__all__ = ["FixedPoint", "Float", "StateFormat"]
