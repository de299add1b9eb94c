"""Tokenwise halves of blocks, evaluated and differentiated tile by tile of tokens.

A module is *tokenwise* where it computes each token from that token alone, as the MLP of a transformer does:
y[t] = m(x[t]). With the option ``tile`` its graph never exists for all tokens at once. Backward knows the
gradient g of its output before the block is evaluated again, because nothing that comes after the module in
the block has to be evaluated for it. So the re-evaluation takes one tile after the other, forwards and at
once backwards,

    y[tile] = m(x[tile]),    g_x[tile] = J(x[tile])^T g[tile],    g_w = sum over tiles of (dm/dw)^T g[tile],

and no product is computed twice. Where the block does have something to evaluate first (a norm behind the
MLP, as in Gemma), g comes later, and the tiles are evaluated once more. Sums over tiles are added in the
order of the tokens, in float32 at least.

What autograd would save of each tile is compared with the forward pass's like every other saved tensor.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..errors import UnsupportedError

#: Tokens of a tile that are tried where none is given.
TILES = (1024, 256)
#: The attribute by which a module is declared.
DECLARED = "tokenwise"

_WHOLE = "leave the option tile out, or evaluate this module whole (attribute tokenwise = False)"


def tokenwise(module: nn.Module) -> nn.Module:
    """Declare a module of a block as tokenwise, so that a stack with the option ``tile`` takes it by tiles.

    y[..., t, :] must depend on x[..., t, :] alone: an MLP, a norm, a mixture of experts without a capacity.
    The module takes one tensor, (..., tokens, features), and returns one with the same leading dimensions.
    The declaration is the attribute ``tokenwise = True``; nothing else of the module changes, and without
    ``tile`` nothing at all.

    Args:
        module: part of a block, or a whole block.

    Returns:
        The same module.

    Example:
        >>> import revstep, torch
        >>> mlp = revstep.tokenwise(torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)))
        >>> mlp.tokenwise
        True
    """
    module.tokenwise = True  # type: ignore[assignment]
    return module


def declared(block: nn.Module) -> list[nn.Module]:
    """The tokenwise modules of a block, without those inside of others."""
    if getattr(block, DECLARED, False) is True:
        return [block]
    return [m for child in block.children() for m in declared(child)]


def leaves(nodes: Iterable[Any], known: Set[Any] = frozenset()) -> Iterator[Tensor]:
    """The leaf tensors at the ends of these nodes' graphs; nodes of ``known`` are not gone through."""
    queue, seen = list(nodes), set(known)
    while queue:
        node = queue.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if not node.next_functions and hasattr(node, "variable"):  # AccumulateGrad
            yield node.variable
        queue += [n for n, _ in node.next_functions]


class Evaluation:
    """One evaluation of a block, whose tokenwise modules are taken by tiles.

    Args:
        owner: gets the calls' questions in backward: ``owner.differentiate(call, g) -> gradients``.
        step: of the block.
        modules: its tokenwise modules.
        size: tokens of a tile.
        wanted: gradients of outputs that are known already, by the number of the call; None: this is the
            forward pass.
        hooks: around the tiles of a re-evaluation: what looks at the saved tensors.
        mark: what brings the random generators back to where they are now.
    """

    def __init__(
        self,
        owner: Any,
        step: int,
        modules: Sequence[nn.Module],
        size: int,
        wanted: dict[int, Tensor] | None = None,
        hooks: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        mark: Callable[[], Any] = lambda: None,
    ):
        self.owner = owner
        self.step = step
        self.modules = modules
        self.size = size
        self.wanted = wanted
        self.hooks = hooks
        self.mark = mark
        self.calls: list[Call] = []

    def call(self, module: nn.Module, forward: Callable[..., Any], args: tuple, kwargs: dict) -> Any:
        """``module``'s own ``forward``, by tiles where there is more than one."""
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or args[0].ndim < 2:
            raise UnsupportedError(
                f"{type(module).__name__} is declared tokenwise and was called with"
                f" {len(args)} argument(s) {sorted(kwargs)}, expected one tensor (..., tokens, features):"
                f" {_WHOLE}"
            )
        x = args[0]
        if x.numel() <= self.size * x.shape[-1]:
            return forward(x)
        if seen := _sees_all_tokens(module):
            raise UnsupportedError(f"{type(module).__name__} is taken by tiles, and {seen}: {_WHOLE}")
        weights = [p for p in module.parameters() if p.requires_grad]
        hooked = [name for name, p in module.named_parameters() if p._backward_hooks]
        if hooked:
            raise UnsupportedError(
                f"the weight {hooked[0]!r} of {type(module).__name__}, which is taken by tiles, has a hook"
                " (Tensor.register_hook) that would see one tile's gradient after the other: use"
                f" register_post_accumulate_grad_hook, or {_WHOLE}"
            )
        made = Call(self, len(self.calls), module, forward)
        self.calls.append(made)
        return _ByTiles.apply(made, x, *weights)


def _sees_all_tokens(module: nn.Module) -> str:
    """What in a tokenwise module would compute something else of a tile than of all tokens, in words."""
    for name, m in module.named_modules():
        before = [hook for hook in m._forward_pre_hooks.values() if not isinstance(hook, WeightNorm)]
        if m is not module and (before or m._forward_hooks):
            return f"{name} in it has a forward hook, which would see one tile after the other"
        if m.training and isinstance(m, (_NormBase, _SpectralNorm)):
            return f"{name or 'it'} ({type(m).__name__}) moves statistics on in every evaluation"
    return ""


class Call:
    """One call of a tokenwise module in one evaluation of its block.

    Attributes:
        number: of the call within the evaluation.
        gradients: of its input and weights, once they are known.
        start: where the random generators stood; for a second evaluation of the tiles.
    """

    def __init__(self, evaluation: Evaluation, number: int, module: nn.Module, forward: Callable[..., Any]):
        self.owner = evaluation.owner
        self.step = evaluation.step
        self.size = evaluation.size
        self.number = number
        self.module = module
        self.forward = forward
        self.gradients: list[Tensor | None] | None = None
        self.start: Any = None
        self._weights: Sequence[Tensor] = ()
        self._needs_input = False

    def evaluate(self, evaluation: Evaluation, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """All tiles; with their gradients where that of the output is known."""
        g = None if evaluation.wanted is None else evaluation.wanted.pop(self.number, None)
        if evaluation.wanted is not None and g is None:
            self.start = evaluation.mark()
            self._weights, self._needs_input = weights, x.requires_grad
        with evaluation.hooks():
            y, self.gradients = self._sweep(x, x.requires_grad, weights, g)
        return y

    def again(self, x: Tensor, g: Tensor) -> None:
        """The tiles once more, now that the gradient of the output is known."""
        swapped = [w for w in self._weights if not isinstance(w, nn.Parameter)]
        if swapped:
            raise UnsupportedError(
                f"{type(self.module).__name__} is taken by tiles, something of its block has to be evaluated"
                f" before its gradient is known, and its weights are those of a functional call: {_WHOLE}"
            )
        _, self.gradients = self._sweep(x, self._needs_input, self._weights, g)

    def _sweep(
        self, x: Tensor, needs_input: bool, weights: Sequence[Tensor], g: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None] | None]:
        """(output, gradients of input and weights) tile by tile; None without ``g``."""
        tokens = x.numel() // x.shape[-1]
        lead = (1,) * (x.ndim - 2)
        flat, version = x.detach().reshape(*lead, tokens, x.shape[-1]), x._version
        y, dx = None, None
        sums = _Sums(weights)
        for a in range(0, tokens, self.size):
            tile = flat.narrow(-2, a, min(self.size, tokens - a)).detach().requires_grad_(needs_input)
            with torch.enable_grad():
                out = self.forward(tile)
            rows = tile.shape[-2]
            self._check(out, tile)
            if y is None:
                self._refuse_strangers(out, tile, weights)
                y = out.new_empty(*lead, tokens, out.shape[-1])
            y.narrow(-2, a, rows).copy_(out.detach())
            if g is None:
                continue
            inputs = [tile, *weights] if needs_input else list(weights)
            found: list[Tensor | None] = [None] * len(inputs)
            if out.requires_grad:
                part = g.reshape(*lead, tokens, g.shape[-1]).narrow(-2, a, rows)
                found = list(torch.autograd.grad(out, inputs, part, allow_unused=True))
            dtile = found.pop(0) if needs_input else None
            if dtile is not None and dx is None:
                dx = torch.empty_like(flat)
                dx.narrow(-2, 0, a).zero_()
            if dx is not None:
                dx.narrow(-2, a, rows).copy_(dtile) if dtile is not None else dx.narrow(-2, a, rows).zero_()
            sums.add(found)
        if x._version != version:
            raise UnsupportedError(
                f"{type(self.module).__name__} changed its input in place; its tiles are views of it: let it"
                f" work on a copy, or {_WHOLE}"
            )
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        if g is None:
            return y, None
        return y, [None if dx is None else dx.reshape(x.shape), *sums.rounded()]

    def _refuse_strangers(self, out: Tensor, tile: Tensor, weights: Sequence[Tensor]) -> None:
        """A tensor with a gradient that is neither the input nor a weight of the module would get none."""
        ends = {id(t) for t in (tile, *weights)}
        known = {t.grad_fn for t in weights if t.grad_fn is not None}
        for leaf in leaves([out.grad_fn], known):
            if id(leaf) not in ends:
                raise UnsupportedError(
                    f"{type(self.module).__name__}, which is taken by tiles, computes with a tensor of shape"
                    f" {tuple(leaf.shape)} that needs a gradient and is none of its parameters: register it"
                    f" as one, or {_WHOLE}"
                )

    def _check(self, out: Any, tile: Tensor) -> None:
        if not isinstance(out, Tensor) or out.shape[:-1] != tile.shape[:-1]:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise UnsupportedError(
                f"{type(self.module).__name__} is declared tokenwise and returned {got} for a tile of shape"
                f" {tuple(tile.shape)}, expected one tensor with the same leading dimensions: {_WHOLE}"
            )


class _Sums:
    """Gradients of weights added up over tiles, in float32 where theirs is narrower."""

    def __init__(self, weights: Sequence[Tensor]):
        self.dtypes = [w.dtype for w in weights]
        self.sums: list[Tensor | None] = [None] * len(weights)

    def add(self, found: Sequence[Tensor | None]) -> None:
        for i, g in enumerate(found):
            if g is None:
                continue
            if self.sums[i] is None:
                self.sums[i] = g.float() if g.dtype.itemsize < 4 else g
            else:
                self.sums[i] += g

    def rounded(self) -> list[Tensor | None]:
        """In the dtypes of the weights."""
        return [None if s is None else s.to(dtype) for s, dtype in zip(self.sums, self.dtypes)]


class _ByTiles(torch.autograd.Function):
    """(x, weights) -> m(x). Saves x, which in a stack is a placeholder, and nothing else."""

    @staticmethod
    def forward(ctx: Any, call: Call, x: Tensor, *weights: Tensor) -> Tensor:
        ctx.call = call
        ctx.save_for_backward(x)
        return call.evaluate(_current(call), x, weights)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple:
        if torch.is_grad_enabled():
            raise UnsupportedError(
                f"second derivatives through {type(ctx.call.module).__name__}, which is taken by tiles:"
                f" {_WHOLE}"
            )
        found = ctx.call.owner.differentiate(ctx.call, g, lambda: ctx.saved_tensors[0])
        return None, *found


# ---- The modules' forward while a block is evaluated ----


class _Local(threading.local):
    """The evaluations that this thread is in, the innermost last."""

    def __init__(self) -> None:
        self.evaluations: list[Evaluation] = []


_local = _Local()
_lock = threading.Lock()


def _current(call: Call) -> Evaluation:
    return next(e for e in reversed(_local.evaluations) if call in e.calls)


class _Forward:
    """In the place of a tokenwise module's forward, on the instance, while a block with it is evaluated."""

    def __init__(self, module: nn.Module):
        self.module = module
        self.instance = module.__dict__.get("forward")
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for evaluation in reversed(_local.evaluations):
            if any(m is self.module for m in evaluation.modules):
                return evaluation.call(self.module, self.own, args, kwargs)
        return self.own(*args, **kwargs)  # another thread's evaluation is under way

    def own(self, *args: Any, **kwargs: Any) -> Any:
        if self.instance is not None:
            return self.instance(*args, **kwargs)
        return type(self.module).forward(self.module, *args, **kwargs)


@contextlib.contextmanager
def evaluating(evaluation: Evaluation) -> Iterator[Evaluation]:
    """Around an evaluation of the block: its tokenwise modules are taken by tiles."""
    for module in evaluation.modules:
        with _lock:
            placed = module.__dict__.get("forward")
            if not isinstance(placed, _Forward):
                placed = module.__dict__["forward"] = _Forward(module)
            placed.users += 1
    _local.evaluations.append(evaluation)
    try:
        yield evaluation
    finally:
        _local.evaluations.remove(evaluation)
        for module in evaluation.modules:
            with _lock:
                placed = module.__dict__["forward"]
                placed.users -= 1
                if not placed.users:
                    if placed.instance is None:
                        del module.__dict__["forward"]
                    else:
                        module.__dict__["forward"] = placed.instance
