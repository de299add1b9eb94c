"""Members of a batch that fail while the others go on, in the loop on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import ConfigError
from ..state import StateFormat
from .methods.base import Micro


class Members:
    """Which members are dead. A dead member is zero in both slots, and nothing is added to it.

    Args:
        shape: of the state.
        event_dims: trailing axes that are one member.

    Attributes:
        dead: bool, of the leading axes.
        failed: the step at which each dead member failed, by its index.
    """

    def __init__(self, shape: Sequence[int], event_dims: int):
        lead = tuple(shape[: len(shape) - event_dims])
        if not lead:
            raise ConfigError(
                f"on_failure='drop' drops members of a batch, and the state of shape {tuple(shape)} is a single system: leave it out, or add a leading axis"
            )
        self.dead = torch.zeros(lead, dtype=torch.bool)
        self.event_dims = event_dims
        self.failed: dict[tuple[int, ...], int] = {}

    def _mask(self, like: Tensor) -> Tensor:
        self.dead = self.dead.to(like.device)
        return self.dead.reshape(*self.dead.shape, *(1,) * self.event_dims)

    def without(self, x: Tensor) -> Tensor:
        """``x`` with zeros where members are dead."""
        return torch.where(self._mask(x), torch.zeros_like(x), x) if self.failed else x

    def fail(self, n: int, slots: list[Tensor], micro: Micro, value: Tensor, gamma: float, fmt: StateFormat) -> bool:
        """Take out the members that a micro-step of step ``n`` cannot hold. False where none is found.

        Args:
            slots: before the micro-step; those of the members that fail become zero.
            value: what the micro-step adds, in units of the scale and without gamma.
        """
        own, other = (fmt.decode(slots[k], torch.float64) for k in (micro.slot, 1 - micro.slot))
        added = value.double() * gamma
        total = micro.alpha * own + micro.beta * other + added
        limit = fmt.limit if fmt.exact else float("inf")
        fits = (total.abs() < limit * (1 - 2.0**-40)) & (added.abs() < limit * (1 - 2.0**-40))  # NaN is not below it
        axes = tuple(range(total.ndim - self.event_dims, total.ndim))
        bad = (~fits).any(axes) if axes else ~fits
        bad &= ~self.dead.to(bad.device)
        if not bool(bad.any()):
            return False
        self.dead = self.dead.to(bad.device) | bad
        self.failed |= {tuple(index): n for index in bad.nonzero().tolist()}
        for k in (0, 1):
            slots[k] = self.without(slots[k])
        return True
