"""A whole stack as one operator that a compiler cannot look into: ``revstep::stack`` and
``revstep::stack_backward``.

At run time the operator is the stack's ordinary pass on detached leaves, autograd, hooks and compiled
blocks included. What backward needs of it hangs on a ticket, a tensor of one number that the surrounding
graph saves: two passes have two tickets, and a ticket that is let go releases its pass.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C import DispatchKey
from torch.autograd.graph import get_gradient_edge

from ..errors import UnsupportedError
from ._tiles import leaves

_LIBRARY = torch.library.Library("revstep", "FRAGMENT")
#: The operator draws from the global generators (dropout), so its calls are no common subexpressions:
#: ``site`` tells them apart, for torch merges calls that look alike whatever their tags say. CUDA graphs
#: cannot hold it.
_TAGS = (torch.Tag.nondeterministic_seeded, torch.Tag.cudagraph_unsafe)
_LIBRARY.define(
    "stack(Tensor x, Tensor? cur, Tensor[] tensors, bool[] needs, int handle, int site, str call) -> (Tensor"
    " y, Tensor other, Tensor ticket)",
    tags=_TAGS,
)
_LIBRARY.define(
    "stack_backward(Tensor ticket, Tensor g, Tensor g_other, int states, Tensor[] tensors, bool[] needs) ->"
    " Tensor[]",
    tags=_TAGS,
)

_stacks: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
_looked_at: weakref.WeakSet[nn.Module] = weakref.WeakSet()
_handles = itertools.count()
_tickets: weakref.WeakValueDictionary[int, Ticket] = weakref.WeakValueDictionary()
_numbers = itertools.count(1)


def register(stack: nn.Module) -> int:
    """The number by which operators find this stack, in this process."""
    handle = next(_handles)
    _stacks[handle] = stack
    return handle


class Ticket(bytearray):
    """The memory of a ticket tensor. It owns what backward needs, and dies with the tensor's storage."""

    def __init__(self, edges: Sequence[torch.autograd.graph.GradientEdge | None], leaves: Sequence[Tensor]):
        number = next(_numbers)
        super().__init__(number.to_bytes(8, "little"))
        self.edges, self.leaves = edges, leaves
        _tickets[number] = self


class _Evaluate(nn.Module):
    """The stack's pass itself, without the hooks of the stack's own call, which stay in the graph
    around it.
    """

    def __init__(self, stack: nn.Module):
        super().__init__()
        self.stack = stack

    def forward(self, x: Any, args: tuple, kwargs: dict) -> Any:
        return self.stack.evaluate(x, args, kwargs)


def decode(tree: tuple, tensors: Sequence[Tensor]) -> Any:
    """What :func:`._compiling.encode` wrote, with the tensors in their places."""
    kind, value = tree
    if kind == "tensor":
        return tensors[value]
    if kind == "number":
        return tensors[value].item()
    if kind == "text":
        return value
    if kind == "dict":
        return {key: decode(item, tensors) for key, item in value}
    return (tuple if kind == "tuple" else list)(decode(item, tensors) for item in value)


def _stack(
    x: Tensor, cur: Tensor | None, tensors: list[Tensor], needs: list[bool], handle: int, site: int, call: str
) -> tuple[Tensor, Tensor, Tensor]:
    stack = _stacks.get(handle)
    if stack is None:
        raise UnsupportedError(
            "the stack of this compiled graph no longer exists in this process: compile again"
        )
    ambient = ast.literal_eval(call)
    given = [x] if cur is None else [x, cur]
    leaves = [t.detach().requires_grad_(needed) for t, needed in zip([*given, *tensors], needs)]
    states, rest = leaves[: len(given)], leaves[len(given) :]
    registered = [*stack.named_parameters(), *stack.named_buffers()]
    args, kwargs = decode(ambient["arguments"], rest[len(registered) :])
    # Buffers stay the module's own, which blocks may write, unless functional_call has put others there.
    given_to_it = {
        f"stack.{name}": t
        for (name, own), t in zip(registered, rest)
        if isinstance(own, nn.Parameter) or own.data_ptr() != t.data_ptr()
    }
    with _ordinary_dispatch(), _autocast(ambient), torch.set_grad_enabled(ambient["grad"]):
        out = torch.func.functional_call(
            _Evaluate(stack), given_to_it, (states[0] if cur is None else tuple(states), args, kwargs)
        )
    ys = out if stack.readout == "pair" else (out,)
    if not all(isinstance(y, Tensor) for y in ys) or len(ys) != 1 + (stack.readout == "pair"):
        raise UnsupportedError(
            "blocks that return auxiliary tensors beside their increment cannot stand in one graph with what"
            " is around the stack: set stack.opaque = False, which breaks the graph at the stack"
        )
    # Of a view: in torch 2.9 grad() cannot start from the edge of an autograd.Function's own node.
    with _ordinary_dispatch(), torch.enable_grad():
        edges = [get_gradient_edge(y.view_as(y)) if y.requires_grad else None for y in ys]
    if any(edges):
        _refuse_strangers(stack, edges, leaves)
    ticket = (
        Ticket(edges, [t for t, needed in zip(leaves, needs) if needed]) if any(edges) else Ticket([], [])
    )
    # The compiler may write into them; the pass may keep them.
    ys = [y.detach().clone(memory_format=torch.contiguous_format) for y in ys]
    return ys[0], ys[1] if len(ys) == 2 else ys[0].new_empty(0), torch.frombuffer(ticket, dtype=torch.int64)


def _refuse_strangers(stack: nn.Module, edges: Sequence[Any], known: Sequence[Tensor]) -> None:
    """Every leaf that the pass reads is one of ``known``; looked at in the first pass of a stack.

    Raises:
        UnsupportedError: a tensor that blocks hold beside their parameters would get no gradient.
    """
    if stack in _looked_at:
        return
    known_ids = set(map(id, known))
    for leaf in leaves(edge.node for edge in edges if edge is not None):
        if id(leaf) not in known_ids:
            raise UnsupportedError(
                f"a block reads a tensor of shape {tuple(leaf.shape)} that requires a gradient and is no"
                " parameter of the stack, and an operator in a compiled graph cannot return its gradient:"
                " register it as a parameter of the block, or set stack.opaque = False, which breaks the"
                " graph at the stack"
            )
    _looked_at.add(stack)


def _stack_backward(
    ticket: Tensor, g: Tensor, g_other: Tensor, states: int, tensors: list[Tensor], needs: list[bool]
) -> list[Tensor]:
    held = _tickets.get(int(ticket))
    if held is None or not held.leaves:
        raise RuntimeError(
            "the states of this forward pass have been released, or its saved tensors were copied by a"
            " saved-tensor hook around the compiled graph; to run backward through it again pass"
            " retain_graph=True to the first backward, and to offload set stack.opaque = False"
        )
    pairs = [(edge, grad) for edge, grad in zip(held.edges, (g, g_other)) if edge is not None]
    again = torch._C._autograd._get_current_graph_task_keep_graph()
    with _ordinary_dispatch():
        grads = torch.autograd.grad(
            [edge for edge, _ in pairs],
            held.leaves,
            [grad.detach() for _, grad in pairs],
            retain_graph=again,
            allow_unused=True,
        )
    if not again:  # let go as autograd lets go of a graph: after its last use, not when the ticket dies
        held.edges, held.leaves = [], []
    like = [t for t, needed in zip([*[g] * states, *tensors], needs) if needed]
    return _apart(grads, like, (g, g_other))


def _apart(grads: Sequence[Tensor | None], like: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
    """The gradients as an operator must return them: none missing, in the promised layout, no two in one
    memory.
    """
    taken = {t.untyped_storage().data_ptr() for t in inputs}
    out = []
    for grad, t in zip(grads, like, strict=True):
        promised = _empty_like(t)
        if grad is None:
            grad = promised.zero_()
        elif grad.stride() != promised.stride() or grad.untyped_storage().data_ptr() in taken:
            grad = promised.copy_(grad)
        taken.add(grad.untyped_storage().data_ptr())
        out.append(grad)
    return out


def _empty_like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


@contextlib.contextmanager
def _ordinary_dispatch() -> Iterator[None]:
    """Autograd and views as outside of any operator: a kernel runs below them."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in (
        DispatchKey.AutogradFunctionality,
        DispatchKey.AutogradOther,
        DispatchKey.AutogradNestedTensor,
        DispatchKey.ADInplaceOrView,
    ):
        exclude = exclude.remove(key)
    if not torch.is_inference_mode_enabled():
        include = include.add(DispatchKey.ADInplaceOrView)
    with torch._C._ForceDispatchKeyGuard(include, exclude):
        yield


@contextlib.contextmanager
def _autocast(ambient: dict) -> Iterator[None]:
    """The autocast state around the stack's call, which compiled code does not run under."""
    with contextlib.ExitStack() as entered:
        for device_type, enabled, dtype in ambient["autocast"]:
            entered.enter_context(
                torch.autocast(
                    device_type, dtype=getattr(torch, dtype), enabled=enabled, cache_enabled=ambient["cache"]
                )
            )
        yield


def _fake_stack(x, cur, tensors, needs, handle, site, call):
    other = _empty_like(x) if ast.literal_eval(call)["pair"] else x.new_empty(0)
    return _empty_like(x), other, torch.empty(1, dtype=torch.int64)


def _fake_stack_backward(ticket, g, g_other, states, tensors, needs):
    return [_empty_like(t) for t, needed in zip([*[g] * states, *tensors], needs) if needed]


def _context(ctx, inputs, output):
    _, cur, tensors, ctx.needs, _, _, call = inputs
    call = ast.literal_eval(call)
    ctx.states = 1 if cur is None else 2
    # All but the buffers, which a block may write: torch then refuses backward after a write.
    ctx.buffers = slice(*call.get("buffers", (0, 0)))
    kept = list(tensors)
    del kept[ctx.buffers]
    ctx.save_for_backward(output[2], *kept)
    ctx.mark_non_differentiable(*(output[2:] if call["pair"] else output[1:]))


def _backward(ctx, g, g_other, _):
    ticket, *tensors = ctx.saved_tensors
    needs = list(ctx.needs[ctx.states :])
    del needs[ctx.buffers]
    needs = [*ctx.needs[: ctx.states], *needs]
    g_other = g.new_empty(0) if g_other is None else g_other
    grads = iter(torch.ops.revstep.stack_backward(ticket, g, g_other, ctx.states, tensors, needs))
    every = [next(grads) if needed else None for needed in ctx.needs]
    return every[0], every[1] if ctx.states == 2 else None, every[ctx.states :], None, None, None, None


_LIBRARY.impl("stack", _stack, "CompositeExplicitAutograd")
_LIBRARY.impl("stack_backward", _stack_backward, "CompositeExplicitAutograd")
torch.library.register_fake("revstep::stack", _fake_stack)
torch.library.register_fake("revstep::stack_backward", _fake_stack_backward)
torch.library.register_autograd("revstep::stack", _backward, setup_context=_context)
