"""A micro-step's Phi and its gradient as lists of torch's operators, captured once and replayed without the
Python of the field and without autograd.

The operators are those that the field and autograd call, in their order: a replay has the bits of an
evaluation, and who replays compares the two before it relies on that.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ..errors import RevstepError

#: Phi(times, x, args) -> value; ``times`` are those of the stages of a Runge-Kutta increment, or one.
Phi = Callable[[Sequence[Tensor], Tensor, Sequence[Tensor]], Tensor]

_aten = torch.ops.aten
#: Operators that return what they are given, where nobody records a graph and nobody writes in place.
_SAME = (_aten.detach.default, _aten.alias.default)
#: Python functions of torch that call an operator with fewer detours than the operator's own object does.
_SHORTER: dict[Any, Callable] = {
    getattr(getattr(_aten, name), overload): getattr(torch, name)
    for name, overload in (
        ("addmm", "default"), ("mm", "default"), ("bmm", "default"), ("t", "default"), ("tanh", "default"),
        ("sin", "default"), ("cos", "default"), ("exp", "default"), ("neg", "default"),
        ("sigmoid", "default"), ("relu", "default"), ("mul", "Tensor"), ("add", "Tensor"),
        ("sub", "Tensor"), ("div", "Tensor"), ("sum", "dim_IntList"), ("transpose", "int"),
    )
}  # fmt: skip


class NotCapturedError(RevstepError):
    """A field that cannot be replayed; the message says why, as a clause."""


@dataclass(frozen=True)
class Captured:
    """The operators of one Phi.

    Attributes:
        constants: tensors that the field reached by itself (weights, buffers), in the order in which
            ``prepare`` takes them, before the arguments.
        prepare: ``(*constants, *arguments) -> kept``: what depends on nothing else, computed once a run.
        value: ``(*kept, *times, x) -> value``.
        joint: ``(*kept, *times, x, cotangent) -> (value, g_x, *g_tensors)``, entries None where nothing
            arrives; None where no gradient was captured.
        dtype: of the value.
    """

    constants: tuple[Tensor, ...]
    prepare: Callable[..., tuple[Tensor, ...]]
    value: Callable[..., Tensor]
    joint: Callable[..., tuple[Tensor | None, ...]] | None
    dtype: torch.dtype

    def bind(self, arguments: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What a walk keeps: the results of ``prepare`` for these arguments."""
        return self.prepare(*(c.detach() for c in self.constants), *(a.detach() for a in arguments))


def capture(
    phi: Phi,
    times: Sequence[Tensor],
    x: Tensor,
    arguments: Sequence[Tensor],
    leaves: Sequence[Tensor] | None,
) -> Captured:
    """Trace Phi, and its vector-Jacobian product where there are ``leaves``.

    Args:
        phi: what is traced; it is called once, with tensors that have no values.
        times, x: what it is called with, 0-d float64 and the state's view.
        arguments: tensors among the field's further arguments. Those that require a gradient are
            differentiated.
        leaves: of the run's graph, differentiated after the arguments; None: values alone.

    Raises:
        NotCapturedError: it asks for a value on the way (a branch, ``float(t)``, NumPy), writes in place,
            draws random numbers, or does what torch's tracer cannot follow.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # takes a second, and loads torch._dynamo

    function = _plain(phi) if leaves is None else _joint(phi, [a.requires_grad for a in arguments], leaves)
    given = [[t.detach() for t in times], x.detach(), [a.detach() for a in arguments]]
    if leaves is not None:
        given.append(torch.zeros_like(x))
    try:
        traced = make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*given)
    except NotCapturedError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())
        raise NotCapturedError(f"torch cannot trace it ({type(error).__name__}: {text[:160]})") from error
    return _built(traced, len(times), len(arguments), leaves is not None)


def _plain(phi: Phi) -> Callable:
    def run(times: list, x: Tensor, arguments: list) -> tuple[Tensor, ...]:
        return (phi(times, x, arguments).detach(),)

    return run


def _joint(phi: Phi, wanted: Sequence[bool], leaves: Sequence[Tensor]) -> Callable:
    """As backward evaluates and differentiates: see :mod:`._gradient`."""

    def run(times: list, x: Tensor, arguments: list, cotangent: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            own = [a.detach().requires_grad_() if w else a for a, w in zip(arguments, wanted)]
            value = phi(times, x, own)
            if not value.requires_grad:
                raise NotCapturedError("nothing that requires a gradient acts on its value")
            inputs = [x, *(a for a, w in zip(own, wanted) if w), *leaves]
            found = torch.autograd.grad(value, inputs, cotangent.to(value.dtype), allow_unused=True)
        return value.detach(), *found

    return run


# ---- From the trace to functions: what depends on weights alone apart, detours out ----


def _built(traced: fx.GraphModule, times: int, arguments: int, joint: bool) -> Captured:
    graph = traced.graph
    _check(graph)
    _shorten(graph)
    places = [n for n in graph.nodes if n.op == "placeholder"]
    t_nodes = places[:times]
    x_node = places[times]
    a_nodes = places[times + 1 : times + 1 + arguments]
    moving = [*t_nodes, x_node, *places[times + 1 + arguments :]]
    constants = [n for n in graph.nodes if n.op == "get_attr"]
    results = next(n for n in graph.nodes if n.op == "output").args[0]
    results = list(results) if isinstance(results, (tuple, list)) else [results]
    tied = _depend_on(graph, moving)
    kept = [n for n in graph.nodes if n not in tied and n.op != "output" and _leaves_it(n, tied, results)]
    prepare = _function(graph, [*constants, *a_nodes], kept, single=False)
    value = _function(graph, [*kept, *moving[: times + 1]], results[:1], single=True)
    both = _function(graph, [*kept, *moving], results, single=False) if joint else None
    tensors = tuple(_attribute(traced, n.target) for n in constants)
    return Captured(tensors, prepare, value, both, results[0].meta["val"].dtype)


def _check(graph: fx.Graph) -> None:
    """Raises NotCapturedError for operators whose replay would be something else than an evaluation."""
    for node in graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if not isinstance(node.target, torch._ops.OpOverload):
            raise NotCapturedError(f"it calls {node.target}, which is no operator of torch's")
        if node.target._schema.is_mutable:
            raise NotCapturedError(f"it writes in place ({node.target})")
        if torch.Tag.nondeterministic_seeded in node.target.tags:
            raise NotCapturedError(f"it draws random numbers ({node.target})")


def _shorten(graph: fx.Graph) -> None:
    """Leave out operators that return what they are given, and pairs of transpositions."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        source = node.args[0] if node.args else None
        if node.target in _SAME:
            node.replace_all_uses_with(source)
        elif node.target is _aten.t.default and source.target is _aten.t.default:
            node.replace_all_uses_with(source.args[0])
        else:
            continue
        graph.erase_node(node)


def _depend_on(graph: fx.Graph, roots: Sequence[fx.Node]) -> set[fx.Node]:
    found = set(roots)
    for node in graph.nodes:
        if found.intersection(node.all_input_nodes):
            found.add(node)
    return found


def _leaves_it(node: fx.Node, tied: set[fx.Node], results: Sequence[Any]) -> bool:
    """Used where something moves, or a result itself."""
    return node in results or any(user in tied for user in node.users)


def _function(graph: fx.Graph, inputs: Sequence[fx.Node], results: Sequence[Any], single: bool) -> Callable:
    """The nodes between ``inputs`` and ``results`` as a function; ``single``: of one result, not a tuple."""
    new = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in dict.fromkeys(inputs):
        env[node] = new.placeholder(node.name)
    for node in graph.nodes:
        if node in env or node.op != "call_function":
            continue
        if all(source in env for source in node.all_input_nodes):
            env[node] = copied = new.node_copy(node, env.__getitem__)
            copied.target = _SHORTER.get(node.target, node.target)
            copied.meta = {}
    found = tuple(env[r] if isinstance(r, fx.Node) else r for r in results)
    new.output(found[0] if single else found)
    new.eliminate_dead_code()
    return fx.GraphModule({}, new).forward


def _attribute(module: fx.GraphModule, path: str) -> Tensor:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found
