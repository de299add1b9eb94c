"""The page of ``revstep verify --html``: pictures (needs matplotlib) and the tables of claims, in one
self-contained file.
"""

from collections.abc import Sequence

from revstep.ode.methods import available

from . import convergence, depth, energy, stability
from .page import Cell, Page, Picture, Section

__all__ = ["Cell", "Page", "Picture", "Section", "network_pictures", "ode_pictures"]


def network_pictures() -> list[Picture]:
    """Reconstruction error against depth, measured now."""
    return [depth.draw(depth.measure())]


def ode_pictures(names: Sequence[str] | None = None) -> list[Picture]:
    """Convergence, energy and stability of these methods (None: of all), measured now; a picture that would
    have no line is left out.
    """
    methods = {name: method for name, method in available().items() if names is None or name in names}
    found = []
    for drawing in (convergence, energy, stability):
        data = drawing.measure(methods)
        if data:
            found.append(drawing.draw(data))
    return found
