"""Which modules of a model's decoder layers compute each token from that token alone, found by trying: their
MLPs and mixtures of experts, which the option ``tile`` takes by tiles of tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from ..stack import tokenwise
from ..stack._tiles import DECLARED, declared

_TILE = "leave the option tile out"


class Candidates:
    """Children of the decoder layers with a hidden layer of their own (two matrices or more), watched while
    the model is tried on a few tokens.

    A child is tokenwise where it took one tensor (batch, tokens, width) and gave one, and its own forward on
    some of the tokens, in another order and in one row, gives the same for each of them, up to rounding.
    """

    def __init__(self, layers: Sequence[nn.Module]):
        self.layers = layers
        self._watched = [m for layer in layers for m in layer.children() if _matrices(m) >= 2]
        self._found: dict[nn.Module, bool] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Around a run of the model."""
        hooks = [m.register_forward_hook(self._look, with_kwargs=True) for m in self._watched]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _look(self, module: nn.Module, args: tuple, kwargs: dict, out: Any) -> None:
        self._found[module] = self._found.get(module, True) and _is_tokenwise(module, args, kwargs, out)

    def declare(self) -> list[nn.Module]:
        """Declare those that have been found to be, and return them; not those of which it is said already,
        be it that they are not (``tokenwise = False``).

        Raises:
            UnsupportedError: no layer has one.
        """
        able = [m for m, found in self._found.items() if found]
        new = [m for m in able if not isinstance(getattr(m, DECLARED, None), bool)]
        for module in new:
            tokenwise(module)
        if not any(map(declared, self.layers)):
            kinds = sorted({type(m).__name__ for m in self._watched}) or ["no such module"]
            raise UnsupportedError(
                f"{type(self.layers[0]).__name__} has no MLP that could be taken by tiles: expected a child"
                " that takes one tensor, gives one, and computes each token from that token alone; looked at"
                f" {', '.join(kinds)}: {_TILE}"
            )
        return new


def undeclare(modules: Sequence[nn.Module]) -> None:
    """The inverse of :meth:`Candidates.declare`."""
    for module in modules:
        module.__dict__.pop(DECLARED, None)


def _matrices(module: nn.Module) -> int:
    return sum(p.ndim >= 2 for p in module.parameters())


@torch.no_grad()
def _is_tokenwise(module: nn.Module, args: tuple, kwargs: dict, out: Any) -> bool:
    if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not isinstance(out, Tensor):
        return False
    x = args[0]
    if x.ndim < 2 or out.shape[:-1] != x.shape[:-1]:
        return False
    lead = (1,) * (x.ndim - 2)
    flat, y = x.reshape(*lead, -1, x.shape[-1]).flip(-2), out.reshape(*lead, -1, out.shape[-1]).flip(-2)
    for rows in {1, max(1, flat.shape[-2] // 2)}:
        try:
            part = module.forward(flat.narrow(-2, 0, rows))
        except (RuntimeError, ValueError, TypeError, IndexError):  # it wants the shape it was given
            return False
        if not isinstance(part, Tensor) or part.shape != y.narrow(-2, 0, rows).shape:
            return False
        allowed = _eps(out.dtype) * float(y.abs().max())
        if float((part - y.narrow(-2, 0, rows)).abs().max()) > allowed:
            return False
    return True


def _eps(dtype: torch.dtype) -> float:
    """Sums over a hidden layer in another order: a few hundred roundings at most."""
    return 256 * torch.finfo(dtype).eps if dtype.itemsize >= 4 else 16 * torch.finfo(dtype).eps


def refuse_recorded_routers(index: int) -> None:
    """Raises UnsupportedError where transformers records router logits: those of a tile have a graph of the
    tile alone, and a loss on them would not reach the router's weights.
    """
    from transformers.utils import output_capturing

    recorded = output_capturing._active_collector.get() or {}
    others = sorted(set(recorded) - {"hidden_states", "attentions", "cross_attentions"})
    if index == 0 and others:
        raise UnsupportedError(
            f"{others[0]} are recorded (output_router_logits is on), and the experts are taken by tiles,"
            f" whose routers no loss on them would reach: pass output_router_logits=False, or {_TILE}"
        )
