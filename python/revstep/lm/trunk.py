"""The trunk of a model: its blocks, run as the plain residual stack or as a ReversibleStack, with the same parameters under the same names."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..errors import ConfigError
from ..options import StackOptions
from ..specs import parse_scheme, parse_state


class PreNormBlock(nn.Module):
    """One transformer block as an increment: ``block(p) = a + MLP(p + a)``, ``a = Attn(p)`` (eq. 2.5 of arXiv 2512.02056).

    Both halves normalise their own input and leave out the skip. (B, T, C) -> (B, T, C). Further arguments (tables of positions)
    go to the attention; a stack of two streams gives its arguments to both halves, so an MLP takes them too where there are any.
    """

    def __init__(self, attn: nn.Module, mlp: nn.Module):
        super().__init__()
        self.attn, self.mlp = attn, mlp

    def forward(self, p: Tensor, *args: Tensor) -> Tensor:
        a = self.attn(p, *args)
        return a + self.mlp(p + a, *args)

    def halves(self) -> tuple[nn.Module, nn.Module]:
        """``(F, G)`` for schemes with two streams: the attention half and the MLP half."""
        return self.attn, self.mlp


class ResidualStack(nn.Module):
    """The reference trunk ``p + f(p)`` (eq. 2.2): every activation stored, or each block recomputed in backward.

    ``stack(p, *args)``: further arguments go to every block, as in ``ReversibleStack``.
    """

    report = None  # nothing is reconstructed; the attribute is here so that a trunk need not be asked what it is

    def __init__(self, blocks: Sequence[nn.Module], *, recompute: bool = False):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.recompute = recompute

    def forward(self, p: Tensor, *args: Tensor) -> Tensor:
        for block in self.blocks:
            recompute = self.recompute and torch.is_grad_enabled()
            p = p + (checkpoint(block, p, *args, use_reentrant=False) if recompute else block(p, *args))
        return p


def make_trunk(blocks: Sequence[nn.Module], scheme: Any = "plain", **options: Any) -> nn.Module:
    """The trunk for ``scheme``: "plain", "checkpoint", a string such as "blend:c=0.25", a scheme object, or a ``StackOptions`` with one of these.

    ``options`` are those of ``StackOptions``; ``state`` may be a string. The stored trunks have none of them and
    ignore them, so that one configuration can be run with every trunk.

    Raises:
        ConfigError: unknown scheme, option or state; options that the stack refuses.
    """
    from ..stack import ReversibleStack

    if unknown := sorted(options.keys() - StackOptions.names()):
        raise ConfigError(f"unknown option {unknown[0]!r} of a trunk, expected some of {', '.join(sorted(StackOptions.names()))}")
    how = StackOptions.of(scheme, **options)
    if isinstance(how.scheme, str):
        spec = parse_scheme(how.scheme)
        if not spec.reversible:
            return ResidualStack(blocks, recompute=spec.name == "checkpoint")
        how = dataclasses.replace(how, scheme=spec.make())
    if isinstance(how.state, str):
        how = dataclasses.replace(how, state=parse_state(how.state).make())
    return ReversibleStack(blocks, how)


def evaluated(trunk: nn.Module) -> list[nn.Module]:
    """The modules a trunk calls: its blocks, or the two halves of each for schemes with two streams (which never call the block itself)."""
    halved = getattr(getattr(trunk, "scheme", None), "halves", 1) == 2
    return [part for block in trunk.blocks for part in (block.halves() if halved else (block,))]
