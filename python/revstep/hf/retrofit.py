"""Midpoint that tracks a pretrained residual network, by one fixed-point estimate of the previous state."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..extras import require
from ..stack.arguments import increment


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """transformers' recorders of attentions and router logits look away: a layer's second and third evaluation are not its own."""
    collector = require("transformers.utils.output_capturing", "running a retrofitted model", "hf")._active_collector
    token = collector.set(None)
    try:
        yield
    finally:
        collector.reset(token)


class Retrofit(nn.Module):
    """``F_j(p) = (f_j(p) + f_{j-1}(p - f_{j-1}(p))) / 2`` for Midpoint with h = 1: ``p[j+1] = p[j-1] + 2 F_j(p[j])``.

    A residual network has ``p[j+1] - p[j-1] = f_j(p[j]) + f_{j-1}(p[j-1])``. Midpoint knows p[j] alone, so p[j-1] is replaced by
    one step of the fixed-point iteration for ``p[j-1] = p[j] - f_{j-1}(p[j-1])`` from p[j]. Three evaluations a layer; with the start
    ``repeat`` the first step is the residual one. The parameters are those of the pretrained layers.

    ``forward(x, args, kwargs, earlier)``: ``earlier`` is (args, kwargs) of the layer before.
    """

    def __init__(self, block: nn.Module, before: nn.Module | None):
        super().__init__()
        self.block, self.before = block, before

    def forward(self, x: Tensor, args: tuple, kwargs: dict, earlier: tuple[tuple, dict] | None) -> Any:
        f, rest = increment(self.block(x, *args, **kwargs))
        if self.before is None:
            out = f * 0.5
        else:
            args, kwargs = earlier
            with unrecorded():
                previous = x - increment(self.before(x, *args, **kwargs))[0]
                out = (f + increment(self.before(previous, *args, **kwargs))[0]) * 0.5
        return (out, *rest) if rest else out
