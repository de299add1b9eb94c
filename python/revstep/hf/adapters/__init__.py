"""How the increment of a decoder layer is got from the layer. An adapter is a class here; :mod:`.registry` finds them."""

from .base import Adapter
from .registry import available, choose

__all__ = ["Adapter", "available", "choose"]
