"""The page of ``revstep verify --html``: pictures (needs matplotlib) and the tables of claims, in one self-contained file."""

from .page import Cell, Page, Section
from .picture import Picture

__all__ = ["Cell", "Page", "Picture", "Section"]
