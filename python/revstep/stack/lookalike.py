"""Do the blocks of a stack look like ``x + f(x)``? Asked once, at the stack's first forward pass.

A stack adds the state itself, so blocks that add it too make another network than the one that was meant,
and nothing else about it is wrong: it trains, and reconstruction is exact. What gives such blocks away is
the input's share in the output, ``<f(x), x> / <x, x>``, which is near one in every layer. The states of
such a stack double from layer to layer, so a block that normalises its input, or happens to have a
component along it, does not stay near one.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..errors import ResidualBlockWarning

#: The input's share in the output of a block that looks like x + f(x) is at most this far from one.
NEAR = 0.1


def share(x: Tensor, f: Tensor) -> Tensor:
    """``<f, x> / <x, x>`` as a tensor of one float32 number on the same device; NaN where x is zero."""
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        x, f = x.detach().float(), f.detach().float()
        return (f * x).sum() / x.square().sum()


class Lookalike:
    """Collects the shares of one pass; :meth:`tell` reads them, all at once, and warns.

    Args:
        halves: steps a layer.
    """

    def __init__(self, halves: int):
        self.halves = halves
        self._shares: list[Tensor] = []

    def saw(self, x: Tensor, f: Tensor) -> None:
        """The next block gave ``f`` for the state ``x``."""
        if x.device.type != "meta":
            self._shares.append(share(x, f))

    def tell(self) -> None:
        if len(self._shares) < 2 * self.halves:
            return
        shares = torch.stack([s.to(self._shares[0].device) for s in self._shares]).tolist()
        if not all(abs(s - 1.0) <= NEAR for s in shares):
            return
        warnings.warn(
            f"all {len(shares)} blocks of this stack look like x + f(x): the input's share in their "
            f"outputs is {min(shares):.2f} to {max(shares):.2f}. A reversible scheme adds the state "
            "itself, so the blocks must return the increment f(x): leave out the outer skip connection, "
            "or use ReversibleStack(..., residual=True), or revstep.from_residual(block). `revstep "
            "verify --block` measures how far the stack is from the plain network",
            ResidualBlockWarning,
            stacklevel=2,
        )


def first(looked: list[bool], halves: int) -> Lookalike | None:
    """A :class:`Lookalike` for a stack's first pass, else None; ``looked`` is the stack's memory of it."""
    if looked:
        return None
    looked.append(True)
    return Lookalike(halves)
