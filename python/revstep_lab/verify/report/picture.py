"""A figure as the page holds it."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Picture:
    """A PNG with what a reader who does not see it has to know.

    Attributes:
        id: of the page's ``<img>``; checks look for it.
        alt: the picture in words. caption: how it was measured.
        width, height: in CSS pixels; the PNG has twice as many.
        data: the numbers drawn, plain JSON values.
    """

    id: str
    alt: str
    caption: str
    png: bytes
    width: int
    height: int
    data: dict[str, Any]


def picture(fig: Any, id: str, alt: str, caption: str, data: dict[str, Any]) -> Picture:
    """The figure rendered at twice the page's resolution: 96 CSS pixels an inch."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=192)
    width, height = (round(96 * inches) for inches in fig.get_size_inches())
    return Picture(id, alt, caption, buffer.getvalue(), width, height, data)
