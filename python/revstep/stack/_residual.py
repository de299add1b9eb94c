"""Blocks that return ``x + f(x)`` where a stack expects the increment ``f(x)``: noticed at the stack's first
forward pass, or turned by :func:`from_residual` into blocks that return the increment.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError, ResidualBlockWarning, UnsupportedError
from ._stream import Stream, ordinary, remembered

# ------------------------------------------------------------------------------------------------------------
# Do the blocks of a stack look like ``x + f(x)``? Asked once, at the stack's first forward pass.
#
# A stack adds the state itself, so blocks that add it too make another network than the one that was meant,
# and nothing else about it is wrong: it trains, and reconstruction is exact. What gives such blocks away is
# the input's share in the output, ``<f(x), x> / <x, x>``, which is near one in every layer. The states of
# such a stack double from layer to layer, so a block that normalises its input, or happens to have a
# component along it, does not stay near one.

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


# ---- Blocks written the usual way, ``x + f(x)``, as blocks that return the increment ``f(x)`` ----

BY = ("branches", "difference")


def from_residual(block: nn.Module, by: str = "branches") -> nn.Module:
    """A module that returns the increment f(x) of a module that returns x + f(x), with the same parameters.

    It is a module of the block's own class: parameters, buffers, submodules, hooks and the names in
    ``state_dict`` are shared with the block, whose own ``forward`` stays what it is. Hooks of the block run
    around both and see the increment here. The training flag of the module itself is its own, those of its
    submodules are shared. Where the block has a method ``halves()``, that of the new module gives the
    increments of the two halves.

    Args:
        block: returns ``x + f(x)``, or a tuple ``(x + f(x), aux...)``.
        by: ``"branches"``: the block's own forward runs on a tensor that remembers what is added to it, so
            the increment is what the block's branches computed, to the bit. ``"difference"``:
            ``block(x) - x``, for blocks whose output is not their input plus branches (post-norm). The block
            has then rounded ``x + f(x)`` to the precision of x: f is off by up to half a unit in the
            last place of the larger of x and x + f(x), which in bfloat16 is 1/256 of it. The block works on a
            copy of x.

    Raises:
        ConfigError: not a module, one that returns the increment already, or one that is compiled already.
        UnsupportedError: when the new module is called: the output is not the input plus what was added to
            it.
    """
    if not isinstance(block, nn.Module):
        raise ConfigError(
            f"from_residual() got {type(block).__name__}, expected an nn.Module that returns x + f(x); "
            "for Hamiltonian give it each half of a pair, or the stack residual=True"
        )
    if by not in BY:
        raise ConfigError(f"by is {by!r}, expected one of {BY}")
    own = block.__dict__.get("forward")
    if isinstance(own, _Increment):
        name = type(block).__name__
        raise ConfigError(f"this {name} returns the increment already (from_residual made it): use it so")
    if hasattr(block, "_orig_mod") or block._compiled_call_impl is not None:
        raise ConfigError(
            f"this {type(block).__name__} is compiled already, and its increment is found by following "
            "its forward: give from_residual() the block as it was before, then compile what it returns, "
            "or the stack with stack.compile()"
        )
    made = _shallow(block)
    made.__dict__["forward"] = _Increment(made, own, by)
    if callable(getattr(block, "halves", None)):
        made.__dict__["halves"] = _Halves(made, block.__dict__.get("halves"), by)
    return made


def residual_layers(blocks: Iterable, halves: int) -> list:
    """The blocks of a stack with ``residual=True``: each through :func:`from_residual`.

    A module that is used at several depths is one module again.

    ``halves``: 2 for pairs (F, G), or modules with a method ``halves()``, whose halves are taken then.
    """
    known: list[tuple[Any, Any]] = []

    def once(module: Any, make: Any) -> Any:
        for before, made in known:
            if before is module:
                return made
        known.append((module, make(module)))
        return known[-1][1]

    def layer(block: Any) -> Any:
        if halves == 1:
            return once(block, from_residual) if isinstance(block, nn.Module) else block
        if isinstance(block, (tuple, list)):
            return tuple(once(half, from_residual) if isinstance(half, nn.Module) else half for half in block)
        if isinstance(block, nn.Module) and callable(getattr(block, "halves", None)):
            return once(block, from_residual)
        return block  # what the stack says of it holds here too

    return [layer(block) for block in blocks]


def _shallow(module: nn.Module) -> nn.Module:
    """The module once more, around the same parameters, buffers, submodules and hooks."""
    made = object.__new__(type(module))
    made.__dict__.update(module.__dict__)
    return made


class _Increment:
    """In the place of a module's ``forward``: the increment of what the class's own forward returns."""

    def __init__(self, module: nn.Module, own: Any, by: str):
        self.module = module
        self.own = own
        self.by = by

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        x = ordinary(x)  # a stream of a block around this one reads it like any other module
        given = x.clone() if self.by == "difference" else Stream.of(x)
        if self.own is None:
            out = type(self.module).forward(self.module, given, *args, **kwargs)
        else:  # a forward on the instance, as libraries that offload put it there
            out = self.own(given, *args, **kwargs)
        several = isinstance(out, (tuple, list)) and len(out) > 0
        y = out[0] if several else out
        f = self._difference(y, x) if self.by == "difference" else remembered(y)
        if f is None:
            raise UnsupportedError(self._untracked(y, x))
        return (f, *ordinary(tuple(out[1:]))) if several else f

    def _difference(self, y: Any, x: Tensor) -> Tensor | None:
        return y - x if isinstance(y, Tensor) and y.shape == x.shape else None

    def _untracked(self, y: Any, x: Tensor) -> str:
        name = type(self.module).__name__
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
            return (
                f"{name} returned {got}, and such a block has no increment: expected x + f(x), which is a "
                f"tensor of shape {tuple(x.shape)} like x, or a tuple that begins with it and goes on with "
                "auxiliary tensors"
            )
        return (
            f"{name} does not return its input plus what its branches add: it normalises, scales or writes "
            "to the sum, as post-norm blocks do. "
            'from_residual(block, by="difference") takes block(x) - x instead, which loses the low bits '
            "of f(x) where x is larger; a block that returns f(x) itself needs no from_residual"
        )


class _Halves:
    """In the place of a module's ``halves``: the increments of both, the same modules at every call."""

    def __init__(self, module: nn.Module, own: Any, by: str):
        self.module = module
        self.own = own
        self.by = by
        self.known: list[tuple[nn.Module, nn.Module]] = []

    def __call__(self) -> tuple[nn.Module, nn.Module]:
        pair = type(self.module).halves(self.module) if self.own is None else self.own()
        return tuple(self._increment(half) for half in pair)

    def _increment(self, half: nn.Module) -> nn.Module:
        for before, made in self.known:
            if before is half:
                return made
        self.known.append((half, from_residual(half, self.by)))
        return self.known[-1][1]
