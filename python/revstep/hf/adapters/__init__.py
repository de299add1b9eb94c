"""How the increment of a decoder layer is got from the layer. An adapter is a class here; :mod:`._base` finds
them.
"""

from ._base import Adapter, available, choose

__all__ = ["Adapter", "available", "choose"]


def __dir__() -> list[str]:
    return sorted(__all__)
