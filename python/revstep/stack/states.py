"""Every state of a forward pass, and the little of it that brings the rest back."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class LastTwo(NamedTuple):
    """The last two states with what their reconstruction needs beside the blocks: carries and generator records."""

    prev: Tensor
    cur: Tensor
    tape: Any = None


class States(list):
    """States ``s[0], s[1], ..., s[steps + 1]`` in the state format's dtype (``s[0]`` and ``s[1]`` are the start pair).

    ``last_two`` is what :meth:`ReversibleStack.reconstruct` takes.
    """

    last_two: LastTwo | None = None
