"""The ways of ``revstep bench frontier`` to run a step of the 12 x 384 trunk: forward, backward and AdamW."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from revstep import fused_step
from revstep.lm._architectures import ResidualStack
from revstep.schemes import make
from revstep.stack import ReversibleStack

from ..bench import packages
from .trunk import TrunkCase, blocks_of, in_autocast

Trunk = Callable[[Tensor], Tensor]
#: A step of a way; ``between`` is called after its forward pass.
Step = Callable[[Callable[[], None]], Any]
#: What our points begin with.
OURS = "ours"
#: How a way is called whose carries wait in host memory.
OFFLOADED = ", carries offloaded"
#: Matrix products, whose outputs a common policy of selective checkpointing keeps.
_PRODUCTS = tuple(getattr(torch.ops.aten, name).default for name in ("mm", "addmm", "bmm", "baddbmm"))
#: Of the activations that torch's partitioner may keep, the share that its budget allows.
BUDGETS = (1.0, 0.5, 0.25, 0.0)


def products_kept(share: int = 1) -> Callable[[], Any]:
    """Contexts for ``checkpoint`` in which the output of one matrix product in ``share`` is kept."""

    def contexts() -> Any:
        seen = {True: 0, False: 0}

        def policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
            if op not in _PRODUCTS:
                return CheckpointPolicy.PREFER_RECOMPUTE
            seen[context.is_recompute] += 1
            kept = seen[context.is_recompute] % share == 0
            return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

        return create_selective_checkpoint_contexts(policy)

    return contexts


def within_budget(budget: float) -> Callable[[Any, Any], Any]:
    """A backend for ``torch.compile``: inductor with ``activation_memory_budget``. Each call makes a new one,
    so that code which is compiled for two budgets has two graphs.
    """
    from torch._functorch import config
    from torch._inductor.compile_fx import compile_fx

    def backend(graph: Any, inputs: Any) -> Any:
        with config.patch(activation_memory_budget=budget):
            return compile_fx(graph, inputs)

    return backend


def checkpointed(blocks: list[nn.Module]) -> dict[str, Trunk]:
    again = partial(checkpoint, use_reentrant=False)

    def each(x: Tensor, every: int = 1, **options: Any) -> Tensor:
        for i, block in enumerate(blocks):
            x = x + (again(block, x, **options) if i % every == 0 else block(x))
        return x

    def segments(x: Tensor, length: int) -> Tensor:
        for start in range(0, len(blocks), length):
            x = again(partial(_run, blocks[start : start + length]), x)
        return x

    k = packages.every(len(blocks))
    return {
        "checkpoint, every block": each,
        "checkpoint, every 2nd block": partial(each, every=2),
        "checkpoint, every 4th block": partial(each, every=4),
        f"checkpoint, segments of {k}": partial(segments, length=k),
        "checkpoint, attention kept": partial(each, context_fn=packages.keep_attention),
        "checkpoint, products kept": partial(each, context_fn=products_kept()),
        "checkpoint, every 2nd product kept": partial(each, context_fn=products_kept(2)),
    }


def _run(blocks: list[nn.Module], x: Tensor) -> Tensor:
    for block in blocks:
        x = x + block(x)
    return x


def compiled(blocks: list[nn.Module]) -> dict[str, Trunk]:
    """The whole trunk as one graph, and block by block."""

    def by_block(x: Tensor, functions: list[Any]) -> Tensor:
        for f in functions:
            x = x + f(x)
        return x

    found: dict[str, Trunk] = {}
    for budget in BUDGETS:
        backend = within_budget(budget)
        found[f"compiled, memory budget {budget:g}"] = torch.compile(partial(_run, blocks), backend=backend)
    backend = within_budget(0.0)
    each = [torch.compile(block, backend=backend) for block in blocks]
    found["compiled block by block, memory budget 0"] = partial(by_block, functions=each)
    return found


def ours(blocks: list[nn.Module], layers: int) -> dict[str, Trunk]:
    """Keep, bits, tiles, and compiled blocks; the fused step is :func:`ways`' own."""

    def stack(c: float | None = None, **options: Any) -> ReversibleStack:
        return ReversibleStack(blocks, make("midpoint") if c is None else make("blend", c=c), **options)

    quarter = sorted({0, 1, layers // 4, layers // 2, 3 * layers // 4})
    return {
        **{f"{OURS}, midpoint (0 bits), keep={k}": stack(keep=k) for k in quarter},
        f"{OURS}, midpoint (0 bits), attention kept": stack(save_ops="attention"),
        f"{OURS}, midpoint (0 bits), keep=0, tiles of 256": stack(tile=256),
        f"{OURS}, midpoint (0 bits), keep={layers // 4}, tiles of 256": stack(keep=layers // 4, tile=256),
        f"{OURS}, blend c=1/4 (2 bits), keep=0": stack(1 / 4),
        f"{OURS}, blend c=1/16 (4 bits), keep=0": stack(1 / 16),
        f"{OURS}, blend c=1/16 (4 bits), keep=0, tiles of 256": stack(1 / 16, tile=256),
    }


def ways(case: TrunkCase) -> tuple[dict[str, Step], list[dict[str, str]]]:
    """``(way -> its step, what was left out and why)``. All share one set of blocks; the coupling of a
    reversing package is another function of the same halves.
    """
    blocks = blocks_of(case)
    parameters = [p for block in blocks for p in block.parameters()]
    x = torch.randn(case.batch, case.length, case.width, device=case.device)
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, fused=True)  # no temporaries
    trunks: dict[str, Trunk] = {"plain": ResidualStack(blocks), **checkpointed(blocks)}
    skipped: list[dict[str, str]] = []
    reason = packages.no_compiler()
    if reason:
        skipped.append({"what": "torch's activation memory budget", "reason": reason})
    else:
        trunks |= compiled(blocks)
    coupling, absent = packages.coupled_trunks([block.halves() for block in blocks], "revlib")
    trunks |= {f"coupling, {name}": trunk.to(case.device) for name, trunk in coupling.items()}
    trunks |= ours(blocks, case.layers)
    if not reason:
        trunks[f"{OURS}, midpoint (0 bits), keep=0, compiled blocks"] = _compiled_stack(case, blocks)

    def step(trunk: Trunk, between: Callable[[], None], fused: bool) -> None:
        with stepping(optimizer, fused):
            leaf = x.detach().requires_grad_()
            with in_autocast(case):
                y = trunk(leaf)
            between()
            # A new one, for a trunk that evaluates its blocks again without the forward pass's.
            with in_autocast(case) if getattr(trunk, "loses_autocast", False) else contextlib.nullcontext():
                y.square().mean().backward()

    steps: dict[str, Step] = {
        name: partial(lambda between, trunk: step(trunk, between, False), trunk=trunk)
        for name, trunk in trunks.items()
    }
    for name in ("plain", "checkpoint, every block", *(n for n in trunks if _may_be_fused(n))):
        steps[f"{name}, fused step"] = partial(
            lambda between, trunk: step(trunk, between, True), trunk=trunks[name]
        )
    return steps, skipped + absent


def _may_be_fused(name: str) -> bool:
    return name.startswith(f"{OURS}, midpoint") and "keep=0" in name and "compiled" not in name


def _compiled_stack(case: TrunkCase, blocks: list[nn.Module]) -> Trunk:
    """On copies of the blocks, whose weights are the same tensors: compiling is in place."""
    copies = blocks_of(case)
    for copy, block in zip(copies, blocks):
        for (name, _), own in zip(list(copy.named_parameters()), block.parameters()):
            module, _, last = name.rpartition(".")
            setattr(copy.get_submodule(module), last, own)
    stack = ReversibleStack(copies, make("midpoint"))
    stack.compile()
    return stack


@contextlib.contextmanager
def stepping(optimizer: torch.optim.Optimizer, fused: bool) -> Iterator[None]:
    """Around forward and backward: the optimiser steps inside backward, or when it is over."""
    if fused:
        with fused_step(optimizer):
            yield
        return
    yield
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
