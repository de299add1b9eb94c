"""One step of a recurrence, its inverse and its gradient, for coefficients of the whole state or of each row;
the two states that such steps move, and what the kernels say of the states they write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..ops import Stats
from ..schemes._base import Coefficients, RowCoefficients

#: Steps are differentiated by those who take them: skip the operators' own autograd layer (it costs more than
#: a small step).
below_autograd = torch._C._AutoDispatchBelowAutograd
_NAMES = ("alpha", "beta", "gamma")


def take(
    c: Coefficients | RowCoefficients,
    prev: Tensor,
    cur: Tensor | None,
    f: Tensor,
    frac_bits: int,
    view_dtype: torch.dtype | None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``next = alpha prev + beta cur + gamma f``: (view, next, carry, stats). ``in_place``: over ``prev``."""
    with below_autograd():
        if isinstance(c, Coefficients):
            return ops.step(prev, cur, f, *c, frac_bits, view_dtype, None, None, in_place)
        return ops.step(prev, cur, f, *c.first, frac_bits, view_dtype, c.choice, c.second, in_place)


def undo(
    c: Coefficients | RowCoefficients,
    nxt: Tensor,
    cur: Tensor | None,
    f: Tensor,
    carry: Tensor,
    frac_bits: int,
    view_dtype: torch.dtype | None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """``prev`` from ``next``: (view, prev, stats). ``in_place``: over ``next``."""
    with below_autograd():
        if isinstance(c, Coefficients):
            return ops.inverse(nxt, cur, f, carry, *c, frac_bits, view_dtype, None, None, in_place)
        return ops.inverse(nxt, cur, f, carry, *c.first, frac_bits, view_dtype, c.choice, c.second, in_place)


def gradients(
    g: Tensor, c: Coefficients | RowCoefficients, needs: Sequence[bool], value_dtype: torch.dtype
) -> list[Tensor | None]:
    """Of prev, cur and f: ``alpha g``, ``beta g`` and, in ``value_dtype``, ``gamma g``. None where not needed
    or zero; of prev and cur ``g`` itself where the factor is 1. The one of f is always memory of its own: the
    block's backward may write into what it is given.
    """
    sets = _sets(c)
    out: list[Tensor | None] = [None, None, None]
    made = []
    for i, dtype in enumerate((g.dtype, g.dtype, value_dtype)):
        factors = {s[i] for s in sets}
        if not needs[i] or factors == {0.0}:
            continue
        # a product with 1 has the same bits and costs a pass over memory
        if factors == {1.0} and dtype == g.dtype and i < 2:
            out[i] = g
        else:
            made.append(i)
    # One pass for all. While a graph of the gradient is recorded, or for several gradients at once
    # (is_grads_batched), products that torch knows; and torch keeps another layout of g.
    several = len(made) > 1 or (made and len(sets) > 1)
    one_pass = (
        several
        and g.is_contiguous()
        and g.dtype in ops.VALUE_DTYPES
        and not (torch.is_grad_enabled() and g.requires_grad)
        and not _several(g)
    )
    for i, x in zip(
        made,
        _in_one_pass(g, c, made, sets, value_dtype) if one_pass else (times(g, c, _NAMES[i]) for i in made),
    ):
        if one_pass or i < 2:
            out[i] = x
        else:
            out[i] = x.clone() if x is g and x.dtype == value_dtype else x.to(value_dtype)
    return out


def _several(g: Tensor) -> bool:
    """It stands for several tensors at once, as torch's two vmaps have them, and has no memory of its own."""
    kinds = torch._C._functorch
    return kinds.is_functorch_wrapped_tensor(g) or kinds.is_legacy_batchedtensor(g)


def _in_one_pass(
    g: Tensor,
    c: Coefficients | RowCoefficients,
    made: list[int],
    sets: list[Coefficients],
    value_dtype: torch.dtype,
) -> list[Tensor]:
    factors = [[s[i] for i in made] for s in sets]
    last = value_dtype if made[-1] == 2 else g.dtype
    with below_autograd():
        return (
            ops.scale(g, factors[0], last)
            if len(sets) == 1
            else ops.scale(g, factors[0], last, c.choice, factors[1])
        )


def times(x: Tensor, c: Coefficients | RowCoefficients, which: str) -> Tensor | None:
    """``x`` times the named coefficient; None where it is zero."""
    factors = [getattr(one, which) for one in _sets(c)]
    if not any(factors):
        return None
    products = [
        torch.zeros_like(x) if factor == 0.0 else x if factor == 1.0 else x * factor for factor in factors
    ]
    if len(products) == 1:
        return products[0]
    return torch.where(c.choice.view(-1, *[1] * (x.ndim - 1)) != 0, products[1], products[0])


def _sets(c: Coefficients | RowCoefficients) -> list[Coefficients]:
    return [c] if isinstance(c, Coefficients) else [c.first, c.second]


# ---- Two states that walk: a step writes one of them from both, and is undone bit for bit ----

AnyCoefficients = Coefficients | RowCoefficients


class Pair:
    """The two states of a recurrence, in the slots 0 and 1.

    A step replaces the state X[i] of one slot, and undoing it brings it back:

        X[i] <- alpha X[i] + beta X[1 - i] + gamma f

    In a stack the slots take turns: state ``s[k]`` is in slot ``k % 2``, and step k writes ``s[k + 2]`` over
    it. In an integration each micro-step says which slot it moves.

    A new state takes the memory of the one it replaces where that one is the pair's own: two states are all
    that a pass needs, and memory that was just read is neither asked of the system nor fetched again.

    Args:
        own: both states given are nobody else's. reuse: those that the pair writes are its own.

    Attributes:
        states: the two states, in the dtype of their format.
        views: their float values where somebody has them, else None. A step lets go of the one it replaces.
    """

    __slots__ = ("_own", "_reuse", "frac_bits", "states", "views")

    def __init__(
        self,
        states: Sequence[Tensor],
        frac_bits: int,
        views: Sequence[Tensor | None] = (None, None),
        own: bool = False,
        reuse: bool = False,
    ):
        self.states = list(states)
        self.frac_bits = frac_bits
        self.views = list(views)
        self._own = [own, own]
        self._reuse = reuse

    def lend(self) -> None:
        """Somebody else has the states too: they are not written to."""
        self._own = [False, False]

    def take(
        self, i: int, c: AnyCoefficients, f: Tensor, view_dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """Step slot ``i`` with the increment ``f``. Returns (carry, stats).

        ``view_dtype``: the kernel writes the float view of the new state too.
        """
        states = self.states
        view, states[i], carry, stats = take(
            c, states[i], states[1 - i], f, self.frac_bits, view_dtype, self._own[i]
        )
        self._own[i] = self._reuse
        self.views[i] = None if view_dtype is None else view
        return carry, stats

    def undo(
        self, i: int, c: AnyCoefficients, f: Tensor, carry: Tensor, view_dtype: torch.dtype | None = None
    ) -> Tensor:
        """The state that slot ``i`` had before the step with the same ``c`` and ``f``. Returns stats."""
        states = self.states
        view, states[i], stats = undo(
            c, states[i], states[1 - i], f, carry, self.frac_bits, view_dtype, self._own[i]
        )
        self._own[i] = self._reuse
        self.views[i] = None if view_dtype is None else view
        return stats


# ---- What the kernels say of the states they write: largest value, values out of range, checksum ----


class Ledger:
    """Statistics in the order in which states were written, (4,) int64 each as the kernels return them.

    On the CPU an entry is looked at as it comes (:meth:`look`), so that an error stops the run at its place.
    A look at another device waits for it: there entries are collected (:meth:`later`) and looked at together
    (:meth:`read`). Whoever keeps the ledger says what an entry means; it knows nobody, so that no circle of
    references keeps states alive.

    Attributes:
        largest: the largest magnitude looked at, in real units.
    """

    __slots__ = ("_pending", "largest")

    def __init__(self) -> None:
        self._pending: list[tuple[Any, Tensor]] = []
        self.largest = 0.0

    def look(self, stats: Tensor) -> Stats:
        """The entry at once."""
        found = ops.read_stats(stats)[0]
        if found.largest > self.largest:
            self.largest = found.largest
        return found

    def later(self, place: Any, stats: Tensor) -> int:
        """Keep an entry of a state that was written there. Returns how many wait."""
        self._pending.append((place, stats))
        return len(self._pending)

    def read(self) -> Iterator[tuple[Any, Stats]]:
        """All entries that have come in since, (place, stats)."""
        if not self._pending:
            return
        # Emptied first: who reads may raise at any entry, and none of them is read again after that.
        pending, self._pending = self._pending, []
        rows = pending[0][1] if len(pending) == 1 else torch.stack([stats for _, stats in pending])
        for (place, _), stats in zip(pending, ops.read_stats(rows)):
            self.largest = max(self.largest, stats.largest)
            yield place, stats

    def headroom(self, limit: float) -> float:
        """How many times larger the states could have been in a format that holds +-``limit``."""
        return limit / self.largest if self.largest else float("inf")
