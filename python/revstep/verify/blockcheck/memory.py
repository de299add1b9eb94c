"""What a block keeps alive outside of the tensors that autograd saves."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ...stack.arguments import increment
from ...stack.outside import Outside
from .finding import Finding, finding

CHECK, CLAIM = "memory", "keeps nothing outside of the tensors that autograd saves"


def outside(make: Callable[[], nn.Module], x: Tensor) -> Finding:
    """Bytes that one more evaluation leaves alive, beside auxiliary outputs, parameters and buffers.

    The second evaluation of a module is measured: a table that it makes once, at the first, does not grow.
    """
    block, leaf = make(), x.detach().clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        block(leaf.clone())
        torch.manual_seed(0)
        with Outside(block.parameters()) as found, torch.enable_grad():
            f, aux = increment(block(leaf.clone()))
    graph = f.grad_fn  # keeps the graph, and what hangs on it; the output itself goes, as in a stack
    del f
    kept = found.nbytes([aux, *block.parameters(), *block.buffers()])
    del graph
    times = kept / max(1, x.numel() * x.element_size())
    each = f"{kept:,} bytes stay alive after one evaluation, {times:.2g} times its input"
    return finding(
        CHECK,
        CLAIM,
        kept == 0,
        each if kept else "",
        "a stack rebuilds what autograd saved and nothing else, so this memory grows with depth: in an "
        "autograd.Function use ctx.save_for_backward(x) instead of ctx.x = x, and keep no activation on "
        "the module, in a hook's list or in a closure"
        if kept
        else "",
        measured=float(kept),
        unit="bytes",
    )
